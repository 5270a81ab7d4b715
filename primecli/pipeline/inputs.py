"""The shards that a stage reads, from arguments or through the pipe, and the check that whoever made them finished."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from primecli.errors import InputError, NothingCameError, UsageError
from primecli.files import require_utf8
from primecli.pipeline import pipe
from primecli.pipeline.summary import check_producer, committed, read_summary
from primecli.shards import parquet
from primecli.shards.parquet import Shard


class Inputs:
    """Shards as they arrive, from arguments or stdin; at the end of the input, their producers are checked.

    arguments: shards, directories and globs as the user typed them; none, or ["-"], to read paths from stdin.
    partial: accept the shards of a stage that failed, was killed or is still running.
    together: shards of several directories are read as one set, so two of them may have the same name.
    warn: called with each message for the user.
    while_idle: called once if the stage before sends nothing for a second, such as to load a model meanwhile.
    watched: handled while the stage before sends nothing, such as the stage's workers.
    waited: seconds spent waiting for the stage before with nothing else to do, so far.
    count: how many shards there are, once the first has come; None where stdin may name more.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        partial: bool = False,
        together: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.warn = warn
        self.together = together
        self.from_stdin = reads_stdin(arguments)
        self.arguments = arguments
        self.partial = partial
        self.while_idle: Callable[[], None] | None = None
        self.watched: pipe.Watched | None = None
        self.waited = 0.0
        self.count: int | None = None
        self._seen: dict[
            str, Path
        ] = {}  # the paths so far, by what may not repeat: their names or the paths themselves
        self._directories: dict[Path, set[str]] = {}  # the names of the shards so far, by directory

    def __iter__(self) -> Iterator[Shard]:
        for path in self.paths():
            yield Shard(path, parquet.read_footer(path))

    def paths(self) -> Iterator[Path]:
        """The paths of the shards alone, for callers that open them in their own way."""
        for path in self._paths():
            require_utf8(path)
            key = str(path) if self.together else path.name
            if key in self._seen:
                raise InputError(
                    f"two input shards are named {path.name}: {self._seen[key]} and {path}",
                    "name each shard once"
                    if self.together
                    else "an output has the name of its input: run the stage once for each directory",
                )
            self._seen[key] = path
            self._directories.setdefault(path.parent, set()).add(path.name)
            yield path
        self._check_end()

    def _paths(self) -> Iterator[Path]:
        if self.from_stdin:
            for path in self._piped_paths():
                yield from self._shards_of(path)
        else:
            named = [shard for path in expand_arguments(self.arguments) for shard in self._shards_of(path)]
            self.count = len(named)
            yield from named

    def _shards_of(self, path: Path) -> list[Path]:
        return self._shards_in(path) if os.path.isdir(path) else [path]

    def _shards_in(self, directory: Path) -> list[Path]:
        if not self.partial:
            check_producer(directory, None)
        return directory_shards(directory, self.warn)

    def _piped_paths(self) -> Iterator[Path]:
        lines = pipe.stdin_lines(self.while_idle, self.watched)
        while True:
            waiting_since = time.monotonic()
            line = next(lines, None)
            if self.watched is None:
                self.waited += time.monotonic() - waiting_since
            elif not self.watched.busy:
                self.waited += time.monotonic() - max(waiting_since, self.watched.idle_since)
            if line is None:
                return
            if line.strip():
                yield Path(line.strip())

    def _check_end(self) -> None:
        if not self.partial:
            for directory, names in self._directories.items():
                check_producer(directory, names if self.from_stdin else None)
        if not self._seen and self.from_stdin and pipe.was_said():
            raise NothingCameError("nothing came, and the stage before this one has said why")
        if not self._seen:
            where = "came through the pipe" if self.from_stdin else "found"
            hint = "see the messages of the stage before this one" if self.from_stdin else None
            raise InputError(f"no shards {where}", hint)

    def close(self) -> None:
        """Stops reading; the stage before sees the closed pipe."""
        if self.from_stdin:
            pipe.close_stdin()


def reads_stdin(arguments: Sequence[str]) -> bool:
    """Whether paths are read from stdin. Raises UsageError if no paths are given and stdin is a terminal."""
    if arguments:
        return list(arguments) == ["-"]
    if pipe.stdin_is_terminal():
        raise UsageError(
            "no shards given", "name shards or a directory of them, or pipe the output of another stage into this one"
        )
    return True


def named_paths(arguments: Sequence[str]) -> Iterator[Path]:
    """The files and directories named by arguments or lines of stdin, for commands that read more than shards."""
    if reads_stdin(arguments):
        yield from (Path(line.strip()) for line in pipe.stdin_lines() if line.strip())
    else:
        yield from expand_arguments(arguments)


def expand_arguments(arguments: Sequence[str]) -> Iterator[Path]:
    """The existing files and directories that several arguments name, in order; see `expand_path`."""
    for text in arguments:
        yield from expand_path(text)


def expand_path(text: str) -> list[Path]:
    """The existing files and directories that a path or a quoted glob names, sorted.

    A path that exists is itself, even if it looks like a glob. A glob does not match names that begin with `_`, such as
    `_summary.json`: they are not shards. Raises InputError if nothing matches.
    """
    path = Path(text)
    if os.path.exists(path):  # unlike Path.exists, it takes a name that is too long for one that does not exist
        return [path]
    if not any(mark in text for mark in "*?["):
        raise InputError(f"{text}: no such file or directory")
    matches = sorted(match for match in map(Path, glob.glob(text)) if not match.name.startswith("_"))
    if not matches:
        raise InputError(f"{text}: no file matches")
    return matches


def directory_shards(directory: Path, warn: Callable[[str], None]) -> list[Path]:
    """The shards of a directory: those that its summary lists or, if it has none, all Parquet files.

    Raises InputError if there are none.
    """
    summary = read_summary(directory)
    if summary is None:
        shards = sorted(directory.glob("*.parquet"))
    else:
        shards = [directory / name for name in committed(directory, summary)]
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing:
            raise InputError(
                f"{directory}: {len(missing)} of its {len(shards)} shards have been removed, {missing[0]} among them",
                "a loop with KEEP=last keeps only the last shards of an iteration; earlier stages make theirs again",
            )
        if summary.status == "stopped-by-reader":
            warn(
                f"{directory}: {summary.stage} stopped early, after {len(shards)} shards, because its reader closed "
                "the pipe"
            )
    if not shards:
        raise InputError(f"{directory}: holds no shards")
    return shards
