"""Shards as a stage takes them in: by argument or through the pipe, with who made them checked at the end."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from primecli import pipe, shards
from primecli.errors import InputError, UsageError
from primecli.summary import check_producer, committed, read_summary


@dataclass(frozen=True, slots=True)
class Shard:
    """An input shard: where it is and what its footer says."""

    path: Path
    footer: shards.Footer

    @property
    def name(self) -> str:
        """The file's name, which the output keeps."""
        return self.path.name


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
        for path in self.paths():
            yield Shard(path, shards.read_footer(path))

    def paths(self) -> Iterator[Path]:
        """The shards' paths alone, for one who opens them otherwise."""
        for path in self._paths():
            known = str(path) if self.together else path.name
            if known in self._seen:
                raise InputError(f"two input shards are named {path.name}: {self._seen[known]} and {path}")
            self._seen[known] = path
            self._directories.setdefault(path.parent, set()).add(path.name)
            yield path
        self._check_end()

    def _paths(self) -> Iterator[Path]:
        if self.from_stdin:
            yield from self._piped_paths()
            return
        for argument in self.arguments:
            path = Path(argument)
            if path.is_dir():
                yield from self._directory(path)
            elif path.exists():
                yield path
            elif any(mark in argument for mark in "*?["):
                matches = sorted(map(Path, glob.glob(argument)))
                if not matches:
                    raise InputError(f"{argument}: no file matches")
                for match in matches:
                    yield from self._directory(match) if match.is_dir() else [match]
            else:
                raise InputError(f"{argument}: no such file or directory")

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
