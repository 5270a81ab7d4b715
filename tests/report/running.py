"""Runs in the middle of an iteration: a stage that is running, updates that hold their locks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from primecli.files import lock
from tests.builders import rollouts, write_shards
from tests.made_runs import write_summary


def at(minute: int, second: int = 0) -> float:
    """A time on the day of the made runs, in seconds since 1970."""
    return datetime.fromisoformat(f"2026-01-02T03:{minute:02d}:{second:02d}+00:00").timestamp()


@contextlib.contextmanager
def iteration_running(root: Path, iteration: int, minute: int, *, rows: int = 0, **config: int) -> Iterator[None]:
    """An iteration that started in this minute.

    Its generate is running and has written the first of two shards of `rows` rollouts in all; both updates hold their
    locks.
    """
    directory = root / str(iteration) / "generate"
    directory.mkdir(parents=True)
    if rows:
        write_shards(directory, rollouts(rows, 1), per_shard=rows // 2)
        (directory / "rollouts-00001-of-00002.parquet").unlink()
    write_summary(directory, "generate", status="running", minute=minute, config=config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(directory / ".primecli.lock", "it"))
        for name in ("policy", "prm"):
            stack.enter_context(lock(root / name / f".{iteration}.lock", "it"))
        yield
