"""`_summary.json`: what a stage did in a directory, and whether it ended well.

It is written when the stage starts (status running) and again before it closes stdout. Who reads a
directory's shards looks at it, so that a truncated stream is never taken for a whole one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from primecli.errors import InputError
from primecli.files import LOCK_NAME, is_locked, read_json, write_json_atomically
from primecli.shards.parquet import NAME_PATTERN

SUMMARY_NAME = "_summary.json"

Status = Literal["running", "complete", "stopped-by-reader", "failed"]


@dataclass(slots=True)
class Summary:
    """One stage's account of one directory.

    seconds: wall time at work, without that spent waiting for the stage before; metrics: numbers by name.
    """

    stage: str
    status: Status
    shards: list[str] = field(default_factory=list)
    rows: int = 0
    groups: int = 0
    seconds: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    version: str = ""
    started: str = ""

    def write(self, directory: Path) -> None:
        """Writes `_summary.json` in this directory, whole."""
        write_json_atomically(directory / SUMMARY_NAME, asdict(self))


def read_summary(directory: Path) -> Summary | None:
    """A directory's summary; None where there is none. Raises InputError for one that cannot be read."""
    path = directory / SUMMARY_NAME
    try:
        fields = read_json(path)
        known = {key: fields[key] for key in Summary.__dataclass_fields__ if key in fields}
        summary = Summary(**known)
        if not isinstance(summary.shards, list) or not all(isinstance(name, str) for name in summary.shards):
            raise TypeError("shards is not a list of names")
        return summary
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "run the stage that made the directory again") from error


def committed(directory: Path, summary: Summary) -> list[str]:
    """Names of the shards that a run has committed: of one that was killed or still runs, those that are there."""
    if summary.status in ("complete", "stopped-by-reader"):
        return sorted(summary.shards)
    return sorted(path.name for path in directory.iterdir() if NAME_PATTERN.fullmatch(path.name))


def check_producer(directory: Path, received: set[str] | None) -> None:
    """Raises InputError unless who made this directory's shards has ended well.

    received: names of the shards that came through the pipe, to be all that were committed; None where the
    user named the shards. A directory without a summary was made by another tool and is taken as it is.
    """
    summary = read_summary(directory)
    if summary is None:
        return
    count = len(committed(directory, summary))
    after = f"after {count} shard{'' if count == 1 else 's'}"
    rerun = "run it again, or pass --partial to use what is there"
    if summary.status == "failed":
        reason = f": {summary.error}" if summary.error else ""
        raise InputError(f"{directory}: {summary.stage} failed {after}{reason}", rerun)
    if summary.status == "running":
        if is_locked(directory / LOCK_NAME):
            raise InputError(
                f"{directory}: {summary.stage} is still running, {after}",
                "wait for it to end, or pass --partial to use what is there",
            )
        raise InputError(f"{directory}: {summary.stage} was killed {after}", rerun)
    if received is not None and summary.status == "complete":
        missing = sorted(set(summary.shards) - received)
        if missing:
            raise InputError(
                f"{directory}: {len(missing)} of the {len(summary.shards)} shards of {summary.stage} did not come "
                f"through the pipe, {missing[0]} among them",
                "pass --partial where a part of them is meant",
            )
