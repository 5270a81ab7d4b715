"""Runs a shard stage: discovers its input, skips what is done, streams, commits whole shards, reports.

with StageRun("verify", options, finish=metrics) as run:
    for shard in run.shards(needs=["response"]):
        if run.skip(shard):
            continue
        table = run.read(shard)
        ...
        run.commit(table, counts={"correct": 12})
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from primecli.errors import InputError, PrimecliError, ReaderClosed, UsageError
from primecli.files import LOCK_NAME, Json, lock, make_directory, remove_leftovers
from primecli.pipeline import pipe
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.options import RunOptions, StageOptions
from primecli.pipeline.progress import duration, say
from primecli.pipeline.recipe import Recipe
from primecli.pipeline.run import Run
from primecli.pipeline.summary import Status, Summary, read_summary
from primecli.shards import parquet, schema
from primecli.shards.parquet import Footer, Shard

if TYPE_CHECKING:
    import pyarrow as pa


class StageRun(Run):
    """One run of one stage over one output directory: lock, summary, skipping, commits, metrics.

    counts: sums over the rows of all shards, by name; `finish` makes the directory's metrics from them.
    gauges: metrics of this run rather than of its rows, such as its peak memory.
    directory: the output directory; None until the first shard has said where that is.
    """

    def __init__(
        self,
        stage: str,
        options: RunOptions,
        *,
        finish: Callable[[dict[str, float]], dict[str, float]] | None = None,
        unit: str = "rollouts",
    ) -> None:
        super().__init__(stage, options, unit)
        self.options = options
        self.directory: Path | None = None
        self.counts: dict[str, float] = {}
        self.gauges: dict[str, float] = {}
        self._finish = finish or (lambda counts: {})
        self._shard_started = self._started
        self._summary = self.summary("running")
        self._inputs: Inputs | None = None
        self._before: Summary | None = None
        self._written = 0
        self._pending: tuple[str, Recipe, tuple[Shard, ...], tuple[Mapping[str, Any], ...]] | None = None

    def __enter__(self) -> Self:
        self._stack.enter_context(self.progress)
        return self

    def shards(self, needs: Sequence[str] = (), *, while_idle: Callable[[], None] | None = None) -> Iterator[Shard]:
        """Input shards as they arrive, each checked for the columns that the stage needs."""
        assert isinstance(self.options, StageOptions), "a stage that takes shards has the options for them"
        self._inputs = Inputs(self.options.shards, partial=self.options.partial, warn=self.warn)
        self._inputs.while_idle = while_idle
        for shard in self._inputs:
            self._open_for(shard)
            parquet.require_columns(shard.path, shard.footer.columns, needs)
            pipe.check_reader()
            yield shard

    def close_input(self) -> None:
        """Takes no further shards, in the manner of `head`; the stage before sees the closed pipe."""
        if self._inputs is not None:
            self._inputs.close()

    def _open_for(self, shard: Shard) -> None:
        assert isinstance(self.options, StageOptions)
        wanted = self.options.out or Path(os.path.normpath(shard.path.parent / ".." / self.stage))
        if wanted.resolve() == shard.path.parent.resolve():
            raise UsageError(f"{wanted} holds the input and would be the output too", "give another --out")
        if self.directory is None:
            self.open(wanted)
        elif wanted != self.directory:
            raise UsageError(f"input comes from several directories, {shard.path.parent} among them", "give --out")

    def open(self, directory: Path) -> None:
        """Makes the output directory this run's: lock, leftovers removed, summary `running`."""
        make_directory(directory)
        self._stack.enter_context(lock(directory / LOCK_NAME, str(directory)))
        remove_leftovers(directory)
        with contextlib.suppress(InputError):  # a damaged one is replaced
            self._before = read_summary(directory)
        self.directory = directory
        self._summary.write(directory)

    def skip(
        self, shard: Shard, *, inputs: Sequence[Shard] | None = None, extra: Mapping[str, Json] | None = None
    ) -> bool:
        """Whether this shard's output is there already; then its path has been passed on.

        inputs: all shards that the output depends on, where that is more than this one.
        extra: what else it depends on. Raises PrimecliError where an output of another recipe is there.
        """
        every = tuple(inputs or (shard,))
        return self.skip_name(shard.name, self.recipe(every, extra), every, shard.footer.provenance)

    def skip_name(
        self,
        name: str,
        recipe: Recipe,
        inputs: tuple[Shard, ...] = (),
        chain: tuple[Mapping[str, Any], ...] = (),
    ) -> bool:
        """As `skip`, for an output that is named rather than made from one shard."""
        assert self.directory is not None, "the output directory is opened before shards are made"
        self._shard_started = time.time()
        self._pending = (name, recipe, inputs, chain)
        footer = self.made(name, recipe, damaged=lambda why: self.warn(f"{why}: making it again"))
        if footer is None:
            return False
        self._record(name, footer.rows, footer.counts or {})
        pipe.emit(self.directory / name)
        return True

    def made(self, name: str, recipe: Recipe, *, damaged: Callable[[str], None] = lambda why: None) -> Footer | None:
        """The footer of an output that is there already; None where it has to be made.

        damaged: hears what is wrong with a file that cannot be read. Raises PrimecliError where an output of
        another recipe is there.
        """
        assert self.directory is not None, "the output directory is opened before shards are made"
        target = self.directory / name
        if self.options.force or not target.exists():
            return None
        try:
            footer = parquet.read_footer(target)
        except InputError as error:
            damaged(error.message)
            return None
        self.refuse_other(target, footer.fingerprint, footer.recipe, recipe, "--out")
        return footer

    def read(self, shard: Shard) -> pa.Table:
        """All columns of an input shard, its types and groups checked."""
        table = parquet.read_table(shard.path)
        parquet.require_columns(shard.path, table.column_names, [schema.GROUP_ID, schema.SAMPLE_INDEX])
        parquet.check_groups(table, shard.path)
        return table

    def expect(self, shard: Shard) -> None:
        """Tells the progress display what the whole will come to, from this shard's rows and name."""
        match = parquet.NAME_PATTERN.fullmatch(shard.name)
        total = shard.footer.rows * int(match[2]) if match else None
        self.progress.advance(0, total=total)

    def commit(self, table: pa.Table, counts: Mapping[str, float] | None = None) -> None:
        """Writes the output that `skip` said is not there, whole, and passes its path on.

        counts: sums over its rows, by name; they add up to the directory's metrics through `finish`.
        """
        assert self._pending is not None, "skip() comes before commit()"
        assert self.directory is not None, "skip() has seen the directory"
        name, recipe, inputs, chain = self._pending
        self._pending = None
        groups = len(table[schema.GROUP_ID].unique())
        all_counts = {**(counts or {}), "groups": groups}
        record = self.provenance(recipe, inputs, self._shard_started)
        parquet.write_shard(
            self.directory / name,
            table,
            fingerprint=recipe.fingerprint(),
            recipe=recipe.as_json(),
            counts=all_counts,
            provenance=[*chain, record],
        )
        self._written += 1
        self._record(name, table.num_rows, all_counts)
        pipe.emit(self.directory / name)

    def count(self, counts: Mapping[str, float]) -> None:
        """Adds to the run's counts without a shard, as for a shard of which nothing was kept."""
        for key, value in counts.items():
            self.counts[key] = self.counts.get(key, 0) + value

    def _record(self, name: str, rows: int, counts: Mapping[str, float]) -> None:
        self._summary.shards.append(name)
        self._summary.rows += rows
        self._summary.groups += int(counts.get("groups", 0))
        self.count(counts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            if error is None or isinstance(error, ReaderClosed):
                self._finish_with("complete" if error is None else "stopped-by-reader")
            else:
                self._fail(error)
        except PrimecliError as failure:
            self._fail(failure)
            raise
        finally:
            self._stack.close()
        return isinstance(error, ReaderClosed)

    def _finish_with(self, status: Status) -> None:
        if self.directory is None:
            self.note("stopped: the reader closed the pipe before any shard came")
            return
        if status == "complete":
            self._clear_leftover_shards(self.directory)
        self._summary.status = status
        self._summary.seconds = self._seconds()
        self._summary.metrics = {**self._finish(self.counts), **self.gauges}
        again = self._before is not None and self._before.shards == self._summary.shards
        if (status == "complete" and not again) or not self._restore_summary(self.directory):
            self._summary.write(self.directory)
        if not self.options.quiet:
            self._stack.pop_all().close()
            say(self.stage, self._closing_line(status))

    def _restore_summary(self, directory: Path) -> bool:
        """Puts the summary of an earlier, complete run back where this one has added nothing to it."""
        if self._written or self._before is None or self._before.status != "complete":
            return False
        self._before.write(directory)
        return True

    def _seconds(self) -> float:
        return self.seconds(self._inputs.waited if self._inputs else 0.0)

    def _closing_line(self, status: Status) -> str:
        summary = self._summary
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in summary.metrics.items())
        skipped = len(summary.shards) - self._written
        there = f" ({skipped} of {len(summary.shards)} shards were there already)" if skipped else ""
        stopped = "stopped early, the reader has closed the pipe; " if status == "stopped-by-reader" else ""
        return (
            f"{stopped}{summary.rows} rollouts in {summary.groups} groups, {duration(summary.seconds)}{there}"
            f"{': ' + metrics if metrics else ''} -> {self.directory}"
        )

    def _clear_leftover_shards(self, directory: Path) -> None:
        there = {path.name for path in directory.iterdir() if parquet.NAME_PATTERN.fullmatch(path.name)}
        left = sorted(there - set(self._summary.shards))
        if left and not self.options.force:
            raise PrimecliError(
                f"{directory} holds {len(left)} shards of another run too, {left[0]} among them",
                "choose another --out, or remove them with --force",
            )
        for name in left:
            if parquet.read_footer(directory / name).fingerprint is not None:  # never another tool's file
                (directory / name).unlink()

    def _fail(self, error: BaseException) -> None:
        if self.directory is None:
            return
        self._summary.status = "failed"
        self._summary.error = str(error) or type(error).__name__
        self._summary.seconds = self._seconds()
        with contextlib.suppress(PrimecliError):  # on a full disk it goes on saying running, which reads as killed
            if not self._restore_summary(self.directory):
                self._summary.write(self.directory)
