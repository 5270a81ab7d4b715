"""What a run is doing just now: the stages at work, what they have done so far, and the time that is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.catalog import STAGES
from primecli.errors import InputError
from primecli.files import is_locked
from primecli.pipeline.progress import duration
from primecli.pipeline.summary import SUMMARY_NAME, committed
from primecli.report.runs import FINISHED, TRAINING, UPDATE_LOCK, Entry, Run, number, split_path, typical_seconds
from primecli.shards import parquet

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

SETTLED_SECONDS = 60.0
LAST_STAGE = "update-policy"  # an iteration that has it is finished
COLUMNS = (
    ("training", "verify", "accuracy"),
    ("PRM pairs", "update-prm", "pair_accuracy_before"),
    ("entropy", "update-policy", "entropy"),
    ("KL", "update-policy", "kl_update"),
    ("tokens", "generate", "response_tokens"),
    ("truncated", "generate", "truncated"),
    ("grad norm", "update-policy", "grad_norm"),
)
"""Of the table: heading, stage, metric; those that matter most first."""


@dataclass(frozen=True, slots=True)
class Activity:
    """A stage that is at work, or that was killed or failed in the run's last iteration."""

    stage: str
    iteration: int
    state: str
    purpose: str = TRAINING
    detail: str = ""

    def text(self) -> str:
        """As one line."""
        where = f"iteration {self.iteration}" + ("" if self.purpose == TRAINING else f", {self.purpose}")
        return f"{where}: {self.stage} {self.state}{f', {self.detail}' if self.detail else ''}"


def activities(run: Run, now: float) -> list[Activity]:
    """The stages at work, updates among them, then what went wrong in the last iteration."""
    found = [_shard_activity(entry, now) for entry in run.entries if entry.state() == "running"]
    found += _updates(run, found)
    last = max((entry.iteration for entry in run.entries), default=0)
    for entry in run.entries:
        state = entry.state()
        if entry.iteration == last and state in ("failed", "killed"):
            detail = " ".join((entry.summary.error or "").split()) if state == "failed" else _so_far(entry)
            found.append(Activity(entry.stage, entry.iteration, state, entry.purpose, detail))
    return found


def _shard_activity(entry: Entry, now: float) -> Activity:
    began = entry.started()
    since = "" if began is None else f", {duration(max(now - began, 0.0))}"
    return Activity(entry.stage, entry.iteration, "at work", entry.purpose, f"{_so_far(entry)}{since}")


def _so_far(entry: Entry) -> str:
    """Rollouts of the shards that are there, and of how many where the stage's own options or shard names say it."""
    try:
        names = committed(entry.path, entry.summary)
        rows = sum(parquet.read_footer(entry.path / name).rows for name in names)
    except (OSError, InputError):
        return ""  # removed, or made again, while it was read
    config = entry.summary.config
    each, prompts = number(config.get("n")), number(config.get("batch_prompts"))
    if each and prompts:
        return f"{rows:,} of {int(each * prompts):,} rollouts"
    match = parquet.NAME_PATTERN.fullmatch(names[0]) if names else None
    parts = f" ({len(names)} of {int(match[2])} shards)" if match else ""
    return f"{rows:,} rollouts{parts}"


def _updates(run: Run, before: list[Activity]) -> Iterator[Activity]:
    """Updates write no summary before they end: their locks say that they run.

    They start with the pipeline, so one waits while a stage before it in the iteration is at work.
    """
    stages = {entry.path.parent: entry.stage for entry in run.entries}
    found: list[tuple[int, str]] = []
    for path in run.locks:
        match = UPDATE_LOCK.fullmatch(path.name)
        if match is not None and is_locked(path):
            target = path.parent / match[1]
            iteration, _ = split_path(target.relative_to(run.path).parts)
            found.append((iteration or 0, stages.get(path.parent, _named_after(path.parent))))
    for iteration, stage in sorted(found, key=lambda update: (update[0], _order(update[1]))):
        earlier = [other for other in before if other.iteration == iteration and other.purpose == TRAINING]
        waits = any(_order(other.stage) < _order(stage) for other in earlier) or any(
            other[0] == iteration and _order(other[1]) < _order(stage) for other in found
        )
        yield Activity(stage, iteration, "waits for its input" if waits else "at work")


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _named_after(directory: Path) -> str:
    """The update that most likely writes here, before any of its checkpoints is there: by the directory's name."""
    return next((stage for stage in STAGES if stage == f"update-{directory.name}"), f"an update of {directory.name}")


def finished(run: Run) -> int:
    """How many of the iterations 1, 2, … are finished: the highest that the policy was updated in."""
    return max((entry.iteration for entry in run.select(LAST_STAGE)), default=0)


def seconds_left(run: Run, doing: list[Activity], total: int | None, now: float) -> tuple[float | None, float | None]:
    """Of the iteration at work and of the whole run, from what iterations took; None where nothing can be said."""
    typical = typical_seconds(run)
    training = [other for other in doing if other.purpose == TRAINING and other.state not in ("failed", "killed")]
    if typical is None or not training:
        return None, None
    current = max(other.iteration for other in training)
    began = [
        start
        for entry in run.entries
        if entry.iteration == current and entry.purpose == TRAINING and (start := entry.started()) is not None
    ]
    here = max(0.0, typical - (now - min(began))) if began else None
    return here, None if total is None else (here or 0.0) + max(0, total - current) * typical


def render(run: Run, total: int | None, now: float, *, height: int, width: int) -> Group:
    """The run for a terminal of this size: what is at work, then a line an iteration, of which the last ones stay."""
    from rich.console import Group
    from rich.text import Text

    doing = activities(run, now)
    styles = {"failed": "bold red", "killed": "bold red", "at work": "green"}
    lines = [Text(activity.text(), style=styles.get(activity.state, "dim"), overflow="ellipsis") for activity in doing]
    if not doing:
        lines.append(Text("nothing is at work", style="dim"))
    lines += [Text(problem, style="bold red") for problem in run.problems]
    here, whole = seconds_left(run, doing, total, now)
    left = [f"about {duration(here)} left of this iteration"] if here is not None else []
    left += [f"about {duration(whole)} left of {total} iterations"] if whole is not None else []
    if left:
        lines.append(Text("; ".join(left)))
    title = Text.assemble((f"{run.name}  ", "bold"), (str(run.path), "dim"), no_wrap=True, overflow="ellipsis")
    room = max(3, height - len(lines) - 8)
    return Group(title, *lines, Text(""), _table(run, room, width))


def _table(run: Run, height: int, width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    iterations = run.iterations()
    earlier = len(iterations) - height
    table = Table(box=SIMPLE_HEAD, caption=f"and {earlier} earlier iterations" if earlier > 0 else None)
    columns = _columns(run)
    shown = iterations[-height:]
    taken = 1
    for name, values in columns:
        taken += 3 + max(len(name), *(len(values.get(iteration, "")) for iteration in shown), 0)
        if taken > width:
            break  # the columns that matter most stand first
        table.add_column(name, justify="right", no_wrap=True)
    for iteration in shown:
        table.add_row(*(values.get(iteration, "") for _, values in columns[: len(table.columns)]))
    return table


def _columns(run: Run) -> list[tuple[str, dict[int, str]]]:
    """Heading and cells by iteration, those that matter most first."""
    seconds: dict[int, float] = {}
    for entry in run.select():
        seconds[entry.iteration] = seconds.get(entry.iteration, 0.0) + (number(entry.summary.seconds) or 0.0)
    found = [
        ("iteration", {iteration: str(iteration) for iteration in run.iterations()}),
        ("rollouts", {iteration: f"{count:,}" for iteration, count in run.rollouts().items()}),
    ]
    metrics = [(name, "verify", "accuracy", name) for name in run.purposes() if name != TRAINING]
    metrics += [(*column, TRAINING) for column in COLUMNS]
    for name, stage, metric, purpose in metrics:
        values = run.series(stage, metric, purpose)
        if values:
            found.append((name, {iteration: f"{value:.3g}" for iteration, value in values.items()}))
    found.insert(len(found) - 2, ("at work", {iteration: duration(value) for iteration, value in seconds.items()}))
    return found


def has_ended(run: Run, now: float) -> bool:
    """Whether nothing is at work, and nothing has been written for SETTLED_SECONDS: a loop goes on at once."""
    if any(activity.state not in ("failed", "killed") for activity in activities(run, now)):
        return False
    written = [_modified(entry.path / SUMMARY_NAME) for entry in run.entries]
    return bool(written) and now - max(written) > SETTLED_SECONDS


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # removed since it was read


def is_over(run: Run, total: int | None) -> bool:
    """Whether as many iterations as the user named are finished, and nothing is at work."""
    working = any(entry.summary.status not in FINISHED and entry.state() == "running" for entry in run.entries)
    return total is not None and finished(run) >= total and not working and not any(map(is_locked, run.locks))
