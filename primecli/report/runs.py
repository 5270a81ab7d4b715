"""A run directory: the `_summary.json` files below it, by iteration and by purpose.

A run is any directory with `_summary.json` files somewhere below it. Directory names carry no meaning, except that:

- The iteration is the first component of the path that is a number (`3/verify`, `policy/3`), else the first that ends
  in one (`step-3/verify`). A run with neither is a single iteration: the number that the run's own directory ends in
  (`runs/3`), else 0.
- Everything below a component called eval, heldout, test, val… belongs to an evaluation. So does what `generate`,
  `verify` and `evaluate` wrote where no later stage has a directory beside theirs, if the run has another place where
  one does. Everything else is training.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from primecli.catalog import SHARD_STAGES, STAGES
from primecli.errors import InputError
from primecli.files import LOCK_NAME, TEMPORARY_PREFIX, is_locked
from primecli.pipeline.evaluation import EVALUATION_NAME as EVALUATION_FILE
from primecli.pipeline.evaluation import read_metrics
from primecli.pipeline.summary import SUMMARY_NAME, Summary, read_summary, run_name

TRAINING = "training"
SAMPLING = frozenset({"generate", "import", "verify", "evaluate"})
LEARNING_FROM = frozenset(SHARD_STAGES) - SAMPLING  # samples beside one of these are training, not an evaluation
EVALUATION_NAME = re.compile(
    r"(.*[-_.])?(eval|evaluations?|held[-_]?out|test|val|valid|validation|dev)([-_.*\d].*)?", re.IGNORECASE
)
ENDS_IN_NUMBER = re.compile(r".*?(\d+)")
UPDATE_LOCK = re.compile(r"\.(.+)\.lock")
FINISHED = ("complete", "stopped-by-reader")

State = Literal["running", "complete", "stopped-by-reader", "failed", "killed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One summary, with its position in the run.

    path: the directory that holds the summary.
    pattern: that path below the run, with `*` for the iteration, such as `*/verify` or `policy/*`.
    iteration: its iteration.
    purpose: `training`, or the name of an evaluation.
    summary: the content of `_summary.json`.
    """

    path: Path
    pattern: str
    iteration: int
    purpose: str
    summary: Summary

    @property
    def stage(self) -> str:
        """The stage that wrote the summary."""
        return self.summary.stage

    def state(self) -> State:
        """The summary's status, but `killed` where it says running and no process holds the directory's lock."""
        if self.summary.status == "running" and not is_locked(self.path / LOCK_NAME):
            return "killed"
        return self.summary.status

    def started(self) -> float | None:
        """When the stage started, in seconds since 1970; None where the summary does not say."""
        try:
            return datetime.fromisoformat(self.summary.started).timestamp()
        except (ValueError, TypeError):
            return None


@dataclass
class Run:
    """The summaries of a run.

    name: what the report calls it.
    path: its directory.
    entries: its summaries, the oldest iteration first.
    problems: one line for each summary that cannot be read.
    locks: the lock files of updates, whether held or not.
    """

    name: str
    path: Path
    entries: Sequence[Entry] = ()
    problems: list[str] = field(default_factory=list)
    locks: list[Path] = field(default_factory=list)

    @cached_property
    def _finished_entries(self) -> dict[tuple[str, str], list[Entry]]:
        """The entries that finished, by stage and purpose."""
        finished: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            if entry.summary.status in FINISHED:
                finished.setdefault((entry.stage, entry.purpose), []).append(entry)
        return finished

    def iterations(self) -> list[int]:
        """The iterations that have a summary, in order."""
        return sorted({entry.iteration for entry in self.entries})

    def evaluations(self) -> list[str]:
        """The names of its evaluations, sorted."""
        return sorted({entry.purpose for entry in self.entries} - {TRAINING})

    def purposes(self) -> list[str]:
        """`training`, if the run has any, then its evaluations by name."""
        trains = any(entry.purpose == TRAINING for entry in self.entries)
        return [*([TRAINING] if trains else []), *self.evaluations()]

    def select(self, stage: str | None = None, purpose: str = TRAINING) -> Iterator[Entry]:
        """The entries of a purpose that finished, of one stage or of all."""
        if stage is not None:
            yield from self._finished_entries.get((stage, purpose), [])
        else:
            yield from (
                entry for entry in self.entries if entry.purpose == purpose and entry.summary.status in FINISHED
            )

    def series(self, stage: str, metric: str, purpose: str = TRAINING) -> dict[int, float]:
        """A metric by iteration.

        Where a stage has several directories in an iteration, it is their mean weighted by rows; for `seconds` and
        `rows` it is their sum.
        """
        summed = metric in ("seconds", "rows")
        parts: dict[int, list[tuple[float, int]]] = {}
        for entry in self.select(stage, purpose):
            value = finite_number(getattr(entry.summary, metric)) if summed else metric_of(entry, metric)
            if value is not None:
                parts.setdefault(entry.iteration, []).append((value, max(entry.summary.rows, 1)))
        if summed:
            return {iteration: sum(value for value, _ in values) for iteration, values in parts.items()}
        return {iteration: _weighted_mean(values) for iteration, values in parts.items()}

    def seconds_by_iteration(self) -> dict[int, float]:
        """Seconds that the stages of training worked in each iteration, added up over the stages."""
        seconds: dict[int, float] = {}
        for entry in self.select():
            seconds[entry.iteration] = seconds.get(entry.iteration, 0.0) + (finite_number(entry.summary.seconds) or 0.0)
        return seconds

    def total_rollouts(self) -> dict[int, int]:
        """Rollouts sampled for training up to the end of each iteration."""
        sampled = self.series("generate", "rows") or self.series("verify", "rows")
        return {iteration: int(total) for iteration, total in self._running_total(sampled).items()}

    def total_seconds(self) -> dict[int, float]:
        """`seconds_by_iteration`, added up to the end of each iteration."""
        totals = self._running_total(self.seconds_by_iteration())
        return {iteration: round(total, 3) for iteration, total in totals.items()}

    def _running_total(self, values: dict[int, float]) -> dict[int, float]:
        iterations = self.iterations()
        totals = itertools.accumulate(values.get(iteration, 0.0) for iteration in iterations)
        return dict(zip(iterations, totals, strict=True))


def _weighted_mean(parts: Sequence[tuple[float, int]]) -> float:
    """The mean of values by their rows; a single value as it is, without rounding."""
    if len(parts) == 1:
        return parts[0][0]
    return sum(value * rows for value, rows in parts) / sum(rows for _, rows in parts)


def evaluations_of(runs: Sequence[Run]) -> list[str]:
    """The names of the evaluations that any of the runs has, sorted."""
    return sorted({name for run in runs for name in run.evaluations()})


def stage_order(stage: str) -> int:
    """The position of a stage in an iteration; stages that primecli does not know come last."""
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def finite_number(value: object) -> float | None:
    """A finite number; None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def metric_of(entry: Entry, name: str) -> float | None:
    """A metric of a summary; None where it is missing or is not a number."""
    metrics = entry.summary.metrics
    return finite_number(metrics.get(name)) if isinstance(metrics, dict) else None


def find_run(path: Path, name: str | None = None, *, may_be_empty: bool = False) -> Run:
    """The run in this directory. Raises InputError if the directory holds no run, or several.

    may_be_empty: accept a directory without summaries, for a loop that has just started.
    """
    if not os.path.isdir(path):
        raise InputError(
            f"{path}: {'is a file' if os.path.exists(path) else 'no such directory'}", "give the directory of a run"
        )
    run = Run(name or run_name(path), path)
    summaries: list[_Located] = []
    for directory, files in _directories(path):
        run.locks += [directory / file for file in files if file != LOCK_NAME and UPDATE_LOCK.fullmatch(file)]
        for name, read in ((SUMMARY_NAME, read_summary), (EVALUATION_FILE, _evaluation)):
            if name not in files:
                continue
            try:
                summary = read(directory)
            except InputError as error:
                run.problems.append(error.message)
                continue
            if summary is not None:  # None: removed since it was listed
                summaries.append(_Located(directory, *split_path(directory.relative_to(path).parts), summary))
    if not summaries and not run.problems and not may_be_empty:
        raise InputError(f"{path}: no _summary.json below it", "a run is a directory that stages have written to")
    entries = _entries(path, summaries)
    run.entries = tuple(sorted(entries, key=lambda entry: (entry.iteration, stage_order(entry.stage), entry.pattern)))
    _check_one_run(run)
    return run


def _evaluation(directory: Path) -> Summary:
    """What `primecli evaluate` left beside the shards, as the summary of a stage `evaluate`."""
    return Summary("evaluate", "complete", metrics=read_metrics(directory))


def _directories(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """The directories of a run with their files. Follows symbolic links, but visits each directory once."""
    seen: set[str] = set()
    for directory, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith((TEMPORARY_PREFIX, ".")) and name != "trainer")
        yield Path(directory), files


def split_path(parts: tuple[str, ...]) -> tuple[int | None, str]:
    """The iteration that a path names, and the path with `*` for it.

    >>> split_path(("eval", "3", "verify")), split_path(("step-12", "verify")), split_path(("verify",))
    ((3, 'eval/*/verify'), (12, 'step-*/verify'), (None, 'verify'))
    """
    for number in (re.compile(r"()(\d+)"), re.compile(r"(.*?)(\d+)")):
        for index, part in enumerate(parts):
            match = number.fullmatch(part)
            if match:
                return int(match[2]), "/".join((*parts[:index], f"{match[1]}*", *parts[index + 1 :]))
    return None, "/".join(parts)


class _Located(NamedTuple):
    """A summary with what its path says: the iteration, None where it names none, and the pattern."""

    path: Path
    iteration: int | None
    pattern: str
    summary: Summary


def _entries(root: Path, summaries: Sequence[_Located]) -> list[Entry]:
    own_number = ENDS_IN_NUMBER.fullmatch(root.resolve().name)
    only_iteration = int(own_number[1]) if own_number else 0
    # by pattern, not by directory: in an iteration that has just started, the later stages are still to come
    sampled_in = {_parent(located.pattern) for located in summaries if located.summary.stage in SAMPLING}
    learned_from = {
        _parent(located.pattern) for located in summaries if located.summary.stage in LEARNING_FROM
    } & sampled_in
    entries = []
    for path, iteration, pattern, summary in summaries:
        purpose = _evaluation_name(pattern)
        if purpose is None and summary.stage in SAMPLING and learned_from and _parent(pattern) not in learned_from:
            purpose = "/".join(part for part in pattern.split("/")[:-1] if "*" not in part) or "evaluation"
        entries.append(
            Entry(path, pattern, only_iteration if iteration is None else iteration, purpose or TRAINING, summary)
        )
    return entries


def _parent(pattern: str) -> str:
    return pattern.rpartition("/")[0]


def _evaluation_name(pattern: str) -> str | None:
    """The evaluation that a pattern belongs to: its path without the iteration and the stage; None for training."""
    parts = pattern.split("/")
    if not any(EVALUATION_NAME.fullmatch(part) for part in parts):
        return None
    named = [part.replace("*", "").strip("-_.") for part in parts if part != "*"]
    return "/".join(part for part in named if part and part not in STAGES) or "evaluation"


def _check_one_run(run: Run) -> None:
    """Raises InputError if a stage has two directories in one iteration that differ above the iteration."""
    first: dict[tuple[str, str, int], Entry] = {}
    for entry in run.entries:
        if "*" not in entry.pattern:
            continue
        other = first.setdefault((entry.stage, entry.purpose, entry.iteration), entry)
        head, other_head = (each.pattern.partition("*")[0] for each in (entry, other))
        if entry.purpose == TRAINING and head != other_head:
            roots = " and ".join(str(run.path / each) for each in sorted({head, other_head}))
            raise InputError(
                f"{run.path} holds several runs: {entry.stage} has written to both {roots}", "name each run separately"
            )


def wall_seconds(run: Run) -> list[float]:
    """Wall-clock seconds of each finished iteration: from its start to the start of the next."""
    starts: dict[int, float] = {}
    for entry in run.entries:
        started = entry.started()
        if started is not None and entry.purpose == TRAINING:
            starts[entry.iteration] = min(started, starts.get(entry.iteration, started))
    return [starts[after] - starts[before] for before, after in itertools.pairwise(sorted(starts))]


def typical_seconds(run: Run) -> float | None:
    """The median of `wall_seconds`, which a night between two iterations does not change; None before the second."""
    lengths = [seconds for seconds in wall_seconds(run) if seconds > 0]
    return statistics.median(lengths) if lengths else None
