"""`_summary.json`: what a stage did in a directory, and whether it finished.

A stage writes it when it starts (status running) and again before it closes stdout. Every reader of the directory's
shards checks it, so that a truncated stream is never mistaken for a complete one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from primecli.errors import InputError, MissingFileError
from primecli.files import LOCK_NAME, is_locked, write_json_atomically
from primecli.printable import printable
from primecli.shards.parquet import NAME_PATTERN
from primecli.structures import read_json

SUMMARY_NAME = "_summary.json"
STARTER_RUN = "run"  # where the Makefile of `primecli init` writes, so the name of every run that it makes

Status = Literal["running", "complete", "stopped-by-reader", "failed"]
"""How far a stage has come.

running: it is at work or, if nobody holds the directory's lock, it was killed.
complete: it has read all of its input and written all of its output.
stopped-by-reader: its reader closed the pipe, which is a normal end; the shards listed are complete.
failed: it ended with an error, which `Summary.error` holds.
"""


@dataclass(slots=True)
class Summary:
    """What one stage did in one directory: the fields of `_summary.json`.

    stage: its name, such as "verify".
    status: how far it has come.
    shards: names of the shards that it has committed, such as "rollouts-00000-of-00004.parquet"; for an update, those
        that it has read.
    rows: rollouts in those shards.
    groups: groups in those shards.
    seconds: seconds of wall time at work, without those spent waiting for the stage before.
    config: the resolved options and, where there is one, the seed, by name.
    metrics: numbers by name, such as {"accuracy": 0.41}.
    error: why it failed; None otherwise.
    version: the version of primecli.
    started: when it started, in UTC, such as "2026-01-31T12:00:00+00:00".
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
        """Writes `_summary.json` into a directory, whole or not at all."""
        write_json_atomically(directory / SUMMARY_NAME, asdict(self))


def read_summary(directory: Path) -> Summary | None:
    """The summary of a directory; None if it has none. Raises InputError if the summary cannot be read."""
    path, rerun = directory / SUMMARY_NAME, "run the stage that made the directory again"
    try:
        summary = read_json(path, Summary, rerun)
    except MissingFileError:
        return None
    for index, name in enumerate(summary.shards):
        if name in ("", ".", "..") or "/" in name:  # it would lead out of the directory
            raise InputError(f"{path}: shards[{index}]: {name!r} is not the name of a file", rerun)
    return summary


def committed(directory: Path, summary: Summary) -> list[str]:
    """Names of the shards that a run has committed, sorted; for one that did not finish, those in the directory."""
    if summary.status in ("complete", "stopped-by-reader"):
        return sorted(summary.shards)
    return sorted(path.name for path in directory.iterdir() if NAME_PATTERN.fullmatch(path.name))


def check_producer(directory: Path, received: set[str] | None) -> None:
    """Raises InputError unless the stage that made a directory's shards has finished.

    received: names of the shards that came through the pipe; raises too if these are not all that were committed. None
        if the user named the shards.

    A directory without a summary was made by another tool; it passes.
    """
    summary = read_summary(directory)
    if summary is None:
        return
    count = len(committed(directory, summary))
    after = f"after {count} shard{'' if count == 1 else 's'}"
    rerun = "run it again, or pass --partial to use the shards it has written"
    if summary.status == "failed":
        reason = f": {summary.error}" if summary.error else ""
        raise InputError(f"{directory}: {summary.stage} failed {after}{reason}", rerun)
    if summary.status == "running":
        if is_locked(directory / LOCK_NAME):
            raise InputError(
                f"{directory}: {summary.stage} is still running, {after}",
                "wait for it to finish, or pass --partial to use the shards it has written",
            )
        raise InputError(f"{directory}: {summary.stage} was killed {after}", rerun)
    if received is not None and summary.status == "complete":
        missing = sorted(set(summary.shards) - received)
        if missing:
            raise InputError(
                f"{directory}: {len(missing)} of the {len(summary.shards)} shards of {summary.stage} did not come "
                f"through the pipe, {missing[0]} among them",
                "pass --partial to use an incomplete input on purpose",
            )


def run_name(path: Path) -> str:
    """The name of the run in a directory: the directory's name, or its parent's for the `run` of `init`.

    >>> run_name(Path("/experiments/beta-0.1/run")), run_name(Path("/experiments/runs/7"))
    ('beta-0.1', '7')
    """
    path = path.resolve()
    return printable(path.parent.name or path.name if path.name == STARTER_RUN else path.name)
