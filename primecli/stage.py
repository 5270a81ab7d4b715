"""Runs a shard stage: discovers its input, skips what is done, streams, commits whole shards, reports.

with StageRun("verify", options, config={"timeout": 5.0}, finish=metrics) as run:
    for shard in run.shards(needs=["response"]):
        if run.skip(shard):
            continue
        table = run.read(shard)
        ...
        run.commit(table, counts={"correct": 12})
"""

from __future__ import annotations

import contextlib
import glob
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from primecli import __version__, pipe, schema, shards
from primecli.errors import InputError, PrimecliError, ReaderClosed, UsageError
from primecli.files import LOCK_NAME, Json, fingerprint, lock, make_directory, remove_leftovers
from primecli.progress import Progress, duration, say
from primecli.summary import Status, Summary, check_producer, read_summary

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class StageOptions:
    """What every shard stage lets the user say about its input and output."""

    shards: Sequence[str] = ()
    out: Path | None = None
    force: bool = False
    partial: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """An input shard: where it is and what its footer says."""

    path: Path
    footer: shards.Footer

    @property
    def name(self) -> str:
        """The file's name, which the output keeps."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a result depends on. Two results of one recipe are the same result.

    config: the options that change the result. models: fingerprints by role. inputs: content hashes.
    """

    stage: str
    config: Mapping[str, Json]
    models: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    seed: int | None = None

    def as_json(self) -> dict[str, Json]:
        """The recipe as it is stored and hashed."""
        return {
            "stage": self.stage,
            "schema_version": schema.SCHEMA_VERSION,
            "config": dict(self.config),
            "models": dict(self.models),
            "inputs": list(self.inputs),
            "seed": self.seed,
        }

    def fingerprint(self) -> str:
        """Hash of the recipe."""
        return fingerprint(self.as_json())


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> str:
    """What differs between two recipes, in words."""
    if old is None:
        return "it was not written by primecli"
    found = [
        f"{part} was {old.get(part)}, is {new[part]}"
        for part in ("stage", "schema_version", "seed")
        if old.get(part) != new[part]
    ]
    for part in ("config", "models"):
        before, now = old.get(part) or {}, new[part]
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                label = f"model {key}" if part == "models" else key
                found.append(f"{label} was {before.get(key)}, is {now.get(key)}")
    if list(old.get("inputs") or []) != list(new["inputs"]):
        found.append("its input has changed")
    return "; ".join(found) or "its recipe"


def provenance_record(
    recipe: Recipe, execution: Mapping[str, Json], started: float, inputs: Sequence[Shard]
) -> dict[str, Json]:
    """One link of the provenance chain: which command made this, from what, when and in how many seconds."""
    return {
        "stage": recipe.stage,
        "version": __version__,
        "command": shlex.join(["primecli", *sys.argv[1:]]),
        "config": {**recipe.config, **execution},
        "inputs": [{"path": str(shard.path), "content": shard.footer.content} for shard in inputs],
        "models": dict(recipe.models),
        "seed": recipe.seed,
        "fingerprint": recipe.fingerprint(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
    }


class Inputs:
    """Shards as they arrive, from arguments or stdin, with the producers checked at the end of input."""

    def __init__(self, arguments: Sequence[str], *, partial: bool = False) -> None:
        self.from_stdin = list(arguments) == ["-"] or (not arguments and not pipe.stdin_is_terminal())
        if not arguments and not self.from_stdin:
            raise UsageError(
                "no shards given",
                "name shards or a directory of them, or pipe the output of another stage in",
            )
        self.arguments = arguments
        self.partial = partial
        self.while_idle: Callable[[], None] | None = None
        self.waited = 0.0  # seconds spent waiting for the stage before
        self._seen: dict[str, Path] = {}
        self._directories: dict[Path, set[str]] = {}

    def __iter__(self) -> Iterator[Shard]:
        for path in self._paths():
            shard = Shard(path, shards.read_footer(path))
            if shard.name in self._seen:
                raise InputError(f"two input shards are named {shard.name}: {self._seen[shard.name]} and {path}")
            self._seen[shard.name] = path
            self._directories.setdefault(path.parent, set()).add(shard.name)
            yield shard
        self._check_end()

    def _paths(self) -> Iterator[Path]:
        if self.from_stdin:
            yield from self._piped_paths()
            return
        for argument in self.arguments:
            path = Path(argument)
            if path.is_dir():
                yield from directory_shards(path)
            elif path.exists():
                yield path
            elif any(mark in argument for mark in "*?["):
                matches = sorted(glob.glob(argument))
                if not matches:
                    raise InputError(f"{argument}: no file matches")
                yield from map(Path, matches)
            else:
                raise InputError(f"{argument}: no such file or directory")

    def _piped_paths(self) -> Iterator[Path]:
        lines = pipe.stdin_lines(self.while_idle)
        while True:
            asked = time.time()
            line = next(lines, None)
            self.waited += time.time() - asked
            if line is None:
                return
            if line.strip():
                yield Path(line.strip())

    def _check_end(self) -> None:
        if not self.partial:
            for directory, names in self._directories.items():
                check_producer(directory, names if self.from_stdin else None)
        if not self._seen:
            where = "came through the pipe" if self.from_stdin else "found"
            raise InputError(f"no shards {where}", "see what the stage before says" if self.from_stdin else None)

    def close(self) -> None:
        """Reads no further: the stage before sees the closed pipe."""
        if self.from_stdin:
            pipe.close_stdin()


def directory_shards(directory: Path) -> list[Path]:
    """The shards of a directory: those of its summary, or all Parquet files where another tool made it."""
    summary = read_summary(directory)
    if summary is None:
        found = sorted(directory.glob("*.parquet"))
    else:
        found = [directory / name for name in sorted(summary.shards)]
    if not found:
        raise InputError(f"{directory}: holds no shards")
    return found


class StageRun:
    """One run of one stage over one output directory: lock, summary, skipping, commits, metrics."""

    def __init__(
        self,
        stage: str,
        options: StageOptions,
        *,
        config: Mapping[str, Json],
        execution: Mapping[str, Json] | None = None,
        seed: int | None = None,
        finish: Callable[[dict[str, float]], dict[str, float]] | None = None,
        unit: str = "rollouts",
    ) -> None:
        self.stage = stage
        self.options = options
        self.config = dict(config)
        self.execution = dict(execution or {})
        self.seed = seed
        self.models: dict[str, str] = {}
        self.directory: Path | None = None
        self.progress = Progress(stage, unit, quiet=options.quiet)
        self.counts: dict[str, float] = {}
        self._finish = finish or (lambda counts: {})
        self._stack = ExitStack()
        self._started = self._shard_started = time.time()
        self._summary = Summary(
            stage,
            "running",
            config={**self.config, **self.execution},
            version=__version__,
            started=datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
        )
        self._inputs: Inputs | None = None
        self._pending: tuple[str, Recipe, tuple[Shard, ...], tuple[Mapping[str, Any], ...]] | None = None

    def __enter__(self) -> Self:
        self._stack.enter_context(self.progress)
        return self

    def shards(self, needs: Sequence[str] = (), *, while_idle: Callable[[], None] | None = None) -> Iterator[Shard]:
        """Input shards as they arrive, each checked for the columns that the stage needs."""
        self._inputs = Inputs(self.options.shards, partial=self.options.partial)
        self._inputs.while_idle = while_idle
        for shard in self._inputs:
            self._open_for(shard)
            shards.require_columns(shard.path, shard.footer.columns, needs)
            pipe.check_reader()
            yield shard

    def close_input(self) -> None:
        """Takes no further shards, in the manner of `head`; the stage before sees the closed pipe."""
        if self._inputs is not None:
            self._inputs.close()

    def _open_for(self, shard: Shard) -> None:
        wanted = self.options.out or shard.path.parent.parent / self.stage
        if self.directory is None:
            if wanted.resolve() == shard.path.parent.resolve():
                raise UsageError(f"{wanted} holds the input and would be the output too", "give --out")
            self.open(wanted)
        elif wanted != self.directory:
            raise UsageError(f"input comes from several directories, {shard.path.parent} among them", "give --out")

    def open(self, directory: Path) -> None:
        """Makes the output directory this run's: lock, leftovers removed, summary `running`."""
        make_directory(directory)
        self._stack.enter_context(lock(directory / LOCK_NAME, str(directory)))
        remove_leftovers(directory)
        self.directory = directory
        self._summary.write(directory)

    def recipe(self, inputs: Sequence[Shard], extra: Mapping[str, Json] | None = None) -> Recipe:
        """What an output made from these inputs depends on."""
        return Recipe(
            self.stage,
            {**self.config, **(extra or {})},
            self.models,
            [shard.footer.content for shard in inputs],
            self.seed,
        )

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
        target = self.directory / name
        if self.options.force or not target.exists():
            return False
        footer = shards.read_footer(target)
        if footer.fingerprint != recipe.fingerprint():
            raise PrimecliError(
                f"{target} exists and is of another run: {differences(footer.recipe, recipe.as_json())}",
                "choose another --out, or overwrite it with --force",
            )
        self._record(name, footer.rows, footer.counts or {})
        pipe.emit(target)
        return True

    def read(self, shard: Shard) -> pa.Table:
        """All columns of an input shard, its types and groups checked."""
        table = shards.read_table(shard.path)
        shards.require_columns(shard.path, table.column_names, [schema.GROUP_ID, schema.SAMPLE_INDEX])
        shards.check_groups(table, shard.path)
        return table

    def expect(self, shard: Shard) -> None:
        """Tells the progress display what the whole will come to, from this shard's rows and name."""
        match = shards.NAME_PATTERN.fullmatch(shard.name)
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
        record = provenance_record(recipe, self.execution, self._shard_started, inputs)
        shards.write_shard(
            self.directory / name,
            table,
            fingerprint=recipe.fingerprint(),
            recipe=recipe.as_json(),
            counts=all_counts,
            provenance=[*chain, record],
        )
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
            if not self.options.quiet:
                say(self.stage, "stopped: the reader closed the pipe before any shard came")
            return
        if status == "complete":
            self._clear_leftover_shards(self.directory)
        self._summary.status = status
        self._summary.seconds = self._seconds()
        self._summary.metrics = self._finish(self.counts)
        self._summary.write(self.directory)
        if not self.options.quiet:
            self._stack.pop_all().close()
            say(self.stage, self._closing_line(status))

    def _seconds(self) -> float:
        """Seconds at work: wall time without that spent waiting for the stage before."""
        return round(time.time() - self._started - (self._inputs.waited if self._inputs else 0.0), 3)

    def _closing_line(self, status: Status) -> str:
        summary = self._summary
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in summary.metrics.items())
        stopped = "stopped early, the reader has closed the pipe; " if status == "stopped-by-reader" else ""
        return (
            f"{stopped}{summary.rows} rollouts in {summary.groups} groups, {duration(summary.seconds)}"
            f"{': ' + metrics if metrics else ''} -> {self.directory}"
        )

    def _clear_leftover_shards(self, directory: Path) -> None:
        left = sorted({path.name for path in directory.glob("*.parquet")} - set(self._summary.shards))
        if left and not self.options.force:
            raise PrimecliError(
                f"{directory} holds {len(left)} shards of another run too, {left[0]} among them",
                "choose another --out, or remove them with --force",
            )
        for name in left:
            (directory / name).unlink()

    def _fail(self, error: BaseException) -> None:
        if self.directory is None:
            return
        self._summary.status = "failed"
        self._summary.error = str(error) or type(error).__name__
        self._summary.seconds = self._seconds()
        with contextlib.suppress(PrimecliError):  # on a full disk it goes on saying running, which reads as killed
            self._summary.write(self.directory)
