"""Runs a stage that writes shards: reads its input, skips what is done, commits whole shards, and reports.

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
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from primecli.errors import InputError, PrimecliError, ReaderClosed, UsageError
from primecli.files import (
    LOCK_NAME,
    Json,
    fsync_directory,
    lock,
    make_directory,
    remove_leftovers,
    reporting_disk_errors,
)
from primecli.pipeline import pipe
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.options import RunOptions, StageOptions
from primecli.pipeline.orders import Made, Order, read_whole
from primecli.pipeline.progress import duration, say
from primecli.pipeline.recipe import BatchRecipe, Moment, Recipe
from primecli.pipeline.run import Run
from primecli.pipeline.summary import Status, Summary, read_summary
from primecli.shards import parquet
from primecli.shards.parquet import Footer, Shard

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST_SUM = 1e9  # shards' counts that can be added up without passing the largest float


class Output(NamedTuple):
    """A shard to be written.

    name: of its file.
    recipe: what it depends on.
    inputs: the shards that its footer names as those it is made from; none in a stage that does not read any.
    batch: what the footer says of all its inputs, where it does not name them.
    chain: the provenance records of its input, the oldest first.
    existing: the footer of the shard where it exists already.
    """

    name: str
    recipe: Recipe
    inputs: tuple[Shard, ...] = ()
    chain: tuple[Mapping[str, Any], ...] = ()
    existing: Footer | None = None
    batch: Mapping[str, Json] | None = None


class StageRun(Run):
    """One run of a stage with one output directory: its lock, summary, skipped and committed shards, and metrics.

    finish: makes the metrics of the directory from `counts`.
    counts: sums over the rows of all shards, by name.
    gauges: metrics of the run rather than of its rows, such as its peak memory.
    directory: the output directory; None until the first shard has determined it.
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
        self._shard_started = self._started  # when work on the current shard began
        self._summary = self.summary("running")
        self._inputs: Inputs | None = None  # None before `shards`, and in a stage that does not read any
        self._previous: Summary | None = None  # the summary that an earlier run left in the directory
        self._written = 0  # shards committed by this run, without those it skipped
        self._pending: Output | None = None  # the shard that `skip` has found missing and `commit` will write

    def __enter__(self) -> Self:
        self._stack.enter_context(self.progress)
        return self

    def shards(
        self,
        needs: Sequence[str] = (),
        *,
        while_idle: Callable[[], None] | None = None,
        watched: pipe.Watched | None = None,
    ) -> Iterator[Shard]:
        """The input shards as they arrive, each checked for the columns that the stage needs.

        while_idle: called once if the stage before sends nothing for a second, such as to load a model meanwhile.
        watched: handled while nothing comes, such as the stage's workers.
        """
        assert isinstance(self.options, StageOptions), "a stage that reads shards has the options for them"
        self._inputs = Inputs(self.options.shards, partial=self.options.partial, warn=self.warn)
        self._inputs.while_idle, self._inputs.watched = while_idle, watched
        for shard in self._inputs:
            self._open_for(shard)
            parquet.require_columns(shard.path, shard.footer.columns, needs)
            pipe.check_reader()
            yield shard

    def close_input(self) -> None:
        """Reads no further shards, like `head`; the stage before sees the closed pipe."""
        if self._inputs is not None:
            self._inputs.close()

    def _open_for(self, shard: Shard) -> None:
        assert isinstance(self.options, StageOptions)
        directory = self.options.out or Path(os.path.normpath(shard.path.parent / ".." / self.stage))
        if directory.resolve() == shard.path.parent.resolve():
            raise UsageError(f"{directory} holds the input and would be the output too", "choose another --out")
        if self.directory is None:
            self.open(directory)
        elif directory != self.directory:
            raise UsageError(
                f"the input comes from several directories, {shard.path.parent} among them", "choose one --out for all"
            )

    def open(self, directory: Path) -> None:
        """Takes over the output directory: locks it, removes leftovers, and writes the summary `running`."""
        make_directory(directory)
        self._stack.enter_context(lock(directory / LOCK_NAME, str(directory)))
        remove_leftovers(directory)
        with contextlib.suppress(InputError):  # a damaged summary is replaced
            self._previous = read_summary(directory)
        self.directory = directory
        self._summary.write(directory)

    def skip(self, shard: Shard, *, batch: BatchRecipe | None = None, extra: Mapping[str, Json] | None = None) -> bool:
        """Whether this shard's output exists already. If so, passes its path on; if not, remembers it for `commit`.

        batch: what the output depends on, if that is all inputs; see `batch_recipe`.
        extra: what else it depends on, without `batch`.

        Raises PrimecliError if the existing output was made by another recipe.
        """
        return self._skip(self.output(shard, batch=batch, extra=extra))

    def skip_name(self, name: str, recipe: Recipe) -> bool:
        """As `skip`, for an output that is not made from shards."""
        return self._skip(self.output_named(name, recipe))

    def _skip(self, output: Output) -> bool:
        self._pending = None if output.existing else output
        if output.existing:
            self.pass_on(output)
        return output.existing is not None

    def output(
        self, shard: Shard, *, batch: BatchRecipe | None = None, extra: Mapping[str, Json] | None = None
    ) -> Output:
        """The output that belongs to a shard. The arguments and what is raised are as in `skip`."""
        if batch is None:
            return self.output_named(shard.name, self.recipe((shard,), extra), (shard,), shard.footer.provenance)
        reference = batch.reference(shard)
        named = batch.shards if reference is None else (shard,)
        return self.output_named(shard.name, batch, named, shard.footer.provenance)._replace(batch=reference)

    def output_named(
        self,
        name: str,
        recipe: Recipe,
        inputs: tuple[Shard, ...] = (),
        chain: tuple[Mapping[str, Any], ...] = (),
    ) -> Output:
        """As `output`, for one that is not made from one shard. chain: the provenance of its input."""
        self._shard_started = Moment.now()
        existing = self.made(name, recipe, damaged=lambda problem: self.warn(f"{problem}: making it again"))
        return Output(name, recipe, inputs, chain, existing)

    def pass_on(self, output: Output) -> None:
        """Counts an output that exists already, and passes its path on."""
        assert self.directory is not None, "the output directory is opened before shards are looked for"
        assert output.existing is not None, "an output that does not exist is committed"
        self._record(output.name, output.existing.rows, output.existing.counts or {})
        pipe.emit(self.directory / output.name)

    def made(
        self, name: str, recipe: Recipe, *, damaged: Callable[[str], None] = lambda problem: None
    ) -> Footer | None:
        """The footer of an output that exists already; None if it has to be made.

        damaged: called with the problem if the existing file cannot be read.

        Raises PrimecliError if the existing output was made by another recipe.
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
        if not self._has_metrics(footer.counts or {}):
            damaged(f"{target}: the counts in its footer are not those of {self.stage}")
            return None
        return footer

    def _has_metrics(self, counts: Mapping[str, float]) -> bool:
        """Whether the directory's metrics can be computed from what a footer says that it counted."""
        try:
            return all(math.isfinite(value * LARGEST_SUM) for value in self._finish(dict(counts)).values())
        except (ArithmeticError, KeyError):
            return False

    def read(self, shard: Shard) -> pa.Table:
        """All columns of an input shard, after a check of its content, their types and of its groups.

        Raises InputError where the shard is not the one that `shards` has yielded any more.
        """
        return read_whole(shard)

    def expect(self, shard: Shard) -> None:
        """Estimates the progress display's total: the rows of this shard times the number of shards.

        Where paths come through the pipe, their number is the one in this shard's name: that of a whole directory.
        """
        count = None if self._inputs is None else self._inputs.count
        if count is None and (match := parquet.NAME_PATTERN.fullmatch(shard.name)):
            count = int(match[2])
        self.progress.advance(0, total=None if count is None else shard.footer.rows * count)

    def commit(self, table: pa.Table, counts: Mapping[str, float] | None = None) -> None:
        """Writes the output that `skip` has found missing, whole or not at all, and passes its path on.

        counts: sums over its rows, by name; `finish` makes the metrics of the directory from all shards' counts.
        """
        assert self._pending is not None, "skip() comes before commit()"
        output, self._pending = self._pending, None
        self.commit_output(output, table, counts or {})

    def commit_output(self, output: Output, table: pa.Table, counts: Mapping[str, float]) -> None:
        """As `commit`, for an output that `output` has found missing."""
        order = self.order(output)
        made = order.write(order.directory / order.name, table, counts, self._shard_started)
        self._committed(order.name, made)

    def order(self, output: Output) -> Order:
        """What it takes to write an output, in this process or in another."""
        assert self.directory is not None, "the output directory is opened before shards are made"
        name, recipe, inputs, chain, _, batch = output
        record, stored = self.provenance(recipe, inputs, self._shard_started), recipe.as_json()
        if batch is not None:
            record |= {"batch": batch}
            stored |= {"inputs": [shard.footer.content for shard in inputs], "batch": batch}
        return Order(self.directory, name, recipe.fingerprint(), stored, (*chain, record))

    def commit_staged(self, name: str, made: Made) -> None:
        """Gives an output that a worker has written its name, and passes its path on."""
        assert self.directory is not None, "the output directory is opened before shards are made"
        target = self.directory / name
        with reporting_disk_errors("write", target):
            os.replace(made.path, target)
            fsync_directory(self.directory)
        self._committed(name, made)

    def _committed(self, name: str, made: Made) -> None:
        assert self.directory is not None
        self._written += 1
        self._record(name, made.rows, made.counts)
        pipe.emit(self.directory / name)

    def record(self, config: Mapping[str, Json]) -> None:
        """Adds to the summary's config what only the input has shown, such as that texts became messages."""
        self._summary.config = {**self._summary.config, **config}

    def count(self, counts: Mapping[str, float]) -> None:
        """Adds to the counts of the run without writing a shard, for example if no group of a shard was kept."""
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
        # a rerun that found everything done, or that its reader stopped early, leaves the complete summary as it was
        same_shards = self._previous is not None and self._previous.shards == self._summary.shards
        if (status == "complete" and not same_shards) or not self._restore_summary(self.directory):
            self._summary.write(self.directory)
        if not self.options.quiet:
            self._stack.pop_all().close()  # takes the progress bar off the terminal before the line is written
            say(self.stage, self._closing_line(status))

    def _restore_summary(self, directory: Path) -> bool:
        """Restores the summary of an earlier, complete run if this one wrote no shards. Returns whether it did."""
        if self._written or self._previous is None or self._previous.status != "complete":
            return False
        self._previous.write(directory)
        return True

    def _seconds(self) -> float:
        return self.seconds(self._inputs.waited if self._inputs else 0.0)

    def _closing_line(self, status: Status) -> str:
        summary = self._summary
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in summary.metrics.items())
        skipped = len(summary.shards) - self._written
        reused = f" ({skipped} of {len(summary.shards)} shards existed already)" if skipped else ""
        stopped = "stopped early because the reader closed the pipe; " if status == "stopped-by-reader" else ""
        return (
            f"{stopped}{summary.rows} rollouts in {summary.groups} groups, {duration(summary.seconds)}{reused}"
            f"{': ' + metrics if metrics else ''} -> {self.directory}"
        )

    def _clear_leftover_shards(self, directory: Path) -> None:
        names = {path.name for path in directory.iterdir() if parquet.NAME_PATTERN.fullmatch(path.name)}
        leftover = sorted(names - set(self._summary.shards))
        if leftover and not self.options.force:
            raise PrimecliError(
                f"{directory} also holds {len(leftover)} shards of another run, {leftover[0]} among them",
                "choose another --out, or remove them with --force",
            )
        for name in leftover:
            if parquet.read_footer(directory / name).fingerprint is not None:  # never remove another tool's file
                (directory / name).unlink()

    def _fail(self, error: BaseException) -> None:
        if self.directory is None:
            return
        self._summary.status = "failed"
        self._summary.error = str(error) or type(error).__name__
        self._summary.seconds = self._seconds()
        with contextlib.suppress(PrimecliError):  # on a full disk it still says running, and counts as killed
            if not self._restore_summary(self.directory):
                self._summary.write(self.directory)
