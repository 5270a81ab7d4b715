"""Shards as a stage takes them in: by argument or through the pipe, with who made them checked at the end."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from primecli.errors import InputError, UsageError
from primecli.pipeline import pipe
from primecli.pipeline.summary import check_producer, committed, read_summary
from primecli.shards import parquet
from primecli.shards.parquet import Shard


class Inputs:
    """Shards as they arrive, from arguments or stdin, with the producers checked at the end of input.

    together: shards of several directories are looked at together, so that two may have the same name.
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
        self.from_stdin = come_through_pipe(arguments)
        self.arguments = arguments
        self.partial = partial
        self.while_idle: Callable[[], None] | None = None
        self.waited = 0.0  # seconds spent waiting for the stage before
        self._seen: dict[str, Path] = {}
        self._directories: dict[Path, set[str]] = {}

    def __iter__(self) -> Iterator[Shard]:
        for path in self.paths():
            yield Shard(path, parquet.read_footer(path))

    def paths(self) -> Iterator[Path]:
        """The shards' paths alone, for one who opens them otherwise."""
        for path in self._paths():
            known = str(path) if self.together else path.name
            if known in self._seen:
                raise InputError(
                    f"two input shards are named {path.name}: {self._seen[known]} and {path}",
                    "a shard may be named once" if self.together else "its output keeps the name: take one at a time",
                )
            self._seen[known] = path
            self._directories.setdefault(path.parent, set()).add(path.name)
            yield path
        self._check_end()

    def _paths(self) -> Iterator[Path]:
        named = self._piped_paths() if self.from_stdin else (path for text in self.arguments for path in places(text))
        for path in named:
            yield from self._directory(path) if path.is_dir() else [path]

    def _directory(self, path: Path) -> list[Path]:
        if not self.partial:
            check_producer(path, None)
        return directory_shards(path, self.warn)

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


def come_through_pipe(arguments: Sequence[str]) -> bool:
    """Whether paths are read from stdin. Raises UsageError where there are none at all."""
    if arguments:
        return list(arguments) == ["-"]
    if pipe.stdin_is_terminal():
        raise UsageError(
            "no shards given", "name shards or a directory of them, or pipe the output of another stage in"
        )
    return True


def places_of(arguments: Sequence[str]) -> Iterator[Path]:
    """The files and directories that arguments or the lines of stdin name, for one who looks at more than shards."""
    if come_through_pipe(arguments):
        yield from (Path(line.strip()) for line in pipe.stdin_lines() if line.strip())
    else:
        yield from (place for text in arguments for place in places(text))


def places(text: str) -> list[Path]:
    """What a user means by a path or a quoted glob: files and directories, in order, those that are there.

    A name with marks of a glob that is there means itself. A glob leaves out names that begin with `_`, which are no
    shards (`_summary.json`). Raises InputError where nothing is meant.
    """
    path = Path(text)
    if path.exists():
        return [path]
    if not any(mark in text for mark in "*?["):
        raise InputError(f"{text}: no such file or directory")
    found = sorted(match for match in map(Path, glob.glob(text)) if not match.name.startswith("_"))
    if not found:
        raise InputError(f"{text}: no file matches")
    return found


def directory_shards(directory: Path, warn: Callable[[str], None]) -> list[Path]:
    """The shards of a directory: those of its summary, or all Parquet files where another tool made it."""
    summary = read_summary(directory)
    if summary is None:
        found = sorted(directory.glob("*.parquet"))
    else:
        found = [directory / name for name in committed(directory, summary)]
        if summary.status == "stopped-by-reader":
            count = len(found)
            warn(f"{directory}: {summary.stage} stopped early there, after {count} shards: its reader closed the pipe")
    if not found:
        raise InputError(f"{directory}: holds no shards")
    return found
