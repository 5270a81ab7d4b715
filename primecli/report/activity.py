"""What a run is doing right now: the stages that are running, their progress, and the time left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from primecli.catalog import STAGES
from primecli.errors import InputError
from primecli.files import is_locked
from primecli.pipeline.progress import duration
from primecli.pipeline.summary import SUMMARY_NAME, committed
from primecli.report.runs import (
    FINISHED,
    TRAINING,
    UPDATE_LOCK,
    Entry,
    Run,
    finite_number,
    split_path,
    stage_order,
    typical_seconds,
)
from primecli.shards import parquet

IDLE_SECONDS = 60.0  # a loop starts its next stage at once, so a run that wrote nothing for this long has ended
LAST_STAGE = "update-policy"  # an iteration in which it has finished is finished
STOPPED = ("failed", "killed")


@dataclass(frozen=True, slots=True)
class Activity:
    """A stage that is running, or that failed or was killed in the run's last iteration.

    stage: its name.
    iteration: its iteration.
    state: `running`, `waiting for input`, `failed` or `killed`.
    purpose: `training`, or the name of an evaluation.
    detail: its progress or its error; may be empty.
    """

    stage: str
    iteration: int
    state: str
    purpose: str = TRAINING
    detail: str = ""

    def text(self) -> str:
        """The activity as one line."""
        where = f"iteration {self.iteration}" + ("" if self.purpose == TRAINING else f", {self.purpose}")
        return f"{where}: {self.stage} {self.state}{f', {self.detail}' if self.detail else ''}"


def activities(run: Run, now: float) -> list[Activity]:
    """The running stages, updates included, then what went wrong in the last iteration.

    now: seconds since 1970.
    """
    running = [_running_stage(entry, now) for entry in run.entries if entry.state() == "running"]
    running += _running_updates(run, running)
    last = max((entry.iteration for entry in run.entries), default=0)
    stopped = []
    for entry in run.entries:
        state = entry.state()
        if entry.iteration == last and state in STOPPED:
            detail = " ".join((entry.summary.error or "").split()) if state == "failed" else _progress(entry)
            stopped.append(Activity(entry.stage, entry.iteration, state, entry.purpose, detail))
    return [*running, *stopped]


def _running_stage(entry: Entry, now: float) -> Activity:
    started = entry.started()
    elapsed = "" if started is None else f", {duration(max(now - started, 0.0))}"
    return Activity(entry.stage, entry.iteration, "running", entry.purpose, f"{_progress(entry)}{elapsed}")


def _progress(entry: Entry) -> str:
    """The rollouts written so far, and of how many, if the stage's options or its shard names tell."""
    try:
        names = committed(entry.path, entry.summary)
        rows = sum(parquet.read_footer(entry.path / name).rows for name in names)
    except (OSError, InputError):
        return ""  # removed or overwritten while we were reading
    config = entry.summary.config
    samples, prompts = finite_number(config.get("n")), finite_number(config.get("batch_prompts"))
    if samples and prompts:
        return f"{rows:,} of {int(samples * prompts):,} rollouts"
    match = parquet.NAME_PATTERN.fullmatch(names[0]) if names else None
    shards = f" ({len(names)} of {int(match[2])} shards)" if match else ""
    return f"{rows:,} rollouts{shards}"


def _running_updates(run: Run, running: Sequence[Activity]) -> Iterator[Activity]:
    """The updates whose locks are held: an update writes its summary only when it ends.

    An update starts with the pipeline, so it waits as long as a stage before it in its iteration is running.
    """
    stages = {entry.path.parent: entry.stage for entry in run.entries}
    updates: list[tuple[int, str]] = []
    for path in run.locks:
        match = UPDATE_LOCK.fullmatch(path.name)
        if match is not None and is_locked(path):
            checkpoint = path.parent / match[1]
            iteration, _ = split_path(checkpoint.relative_to(run.path).parts)
            updates.append((iteration or 0, stages.get(path.parent, _update_writing_to(path.parent))))
    for iteration, stage in sorted(updates, key=lambda update: (update[0], stage_order(update[1]))):
        same_iteration = [each.stage for each in running if each.iteration == iteration and each.purpose == TRAINING]
        same_iteration += [other for other_iteration, other in updates if other_iteration == iteration]
        waits = any(stage_order(other) < stage_order(stage) for other in same_iteration)
        yield Activity(stage, iteration, "waiting for input" if waits else "running")


def _update_writing_to(directory: Path) -> str:
    """A guess at the update that writes here before its first checkpoint is complete: by the directory's name."""
    return next((stage for stage in STAGES if stage == f"update-{directory.name}"), f"an update of {directory.name}")


def finished_iterations(run: Run) -> int:
    """How many of the iterations 1, 2, … are finished: the number of the last one in which the policy was updated."""
    return max((entry.iteration for entry in run.select(LAST_STAGE)), default=0)


def seconds_left(
    run: Run, current: Sequence[Activity], total: int | None, now: float
) -> tuple[float | None, float | None]:
    """Seconds left of the running iteration and of the whole run, each None where nothing can be said.

    Estimated from what the iterations so far have taken. current: the run's activities. total: how many iterations
    the loop will make, None if unknown. now: seconds since 1970.
    """
    typical = typical_seconds(run)
    training = [each for each in current if each.purpose == TRAINING and each.state not in STOPPED]
    if typical is None or not training:
        return None, None
    iteration = max(each.iteration for each in training)
    starts = [
        started
        for entry in run.entries
        if entry.iteration == iteration and entry.purpose == TRAINING and (started := entry.started()) is not None
    ]
    of_iteration = max(0.0, typical - (now - min(starts))) if starts else None
    of_run = None if total is None else (of_iteration or 0.0) + max(0, total - iteration) * typical
    return of_iteration, of_run


def has_ended(run: Run, now: float) -> bool:
    """Whether no stage is running, and nothing has been written for IDLE_SECONDS."""
    if any(activity.state not in STOPPED for activity in activities(run, now)):
        return False
    written = [_modified(entry.path / SUMMARY_NAME) for entry in run.entries]
    return bool(written) and now - max(written) > IDLE_SECONDS


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # removed since it was listed


def is_over(run: Run, total: int | None) -> bool:
    """Whether `total` iterations are finished and no stage is running; never if `total` is None."""
    running = any(entry.summary.status not in FINISHED and entry.state() == "running" for entry in run.entries)
    return (
        total is not None and finished_iterations(run) >= total and not running and not any(map(is_locked, run.locks))
    )
