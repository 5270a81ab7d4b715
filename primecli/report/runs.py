"""What a run directory holds: the `_summary.json` files below it, by iteration and by what they are for.

A run is any directory with `_summary.json` files somewhere below. Nothing is known by a directory's name but this:

- The iteration is the first part of the path that is a number (`3/verify`, `policy/3`), else the first that ends in
  one (`step-3/verify`). A run without either is one iteration: the run's own number (`runs/3`), else 0.
- What stands below a part called eval, heldout, test, val… is an evaluation. So is what `verify` graded where no later
  stage has a directory beside it, when there is another place where one has. All else is training.
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
from typing import Literal

from primecli.catalog import SHARD_STAGES, STAGES
from primecli.errors import InputError
from primecli.files import LOCK_NAME, TEMPORARY_PREFIX, is_locked
from primecli.pipeline.summary import SUMMARY_NAME, Summary, read_summary

TRAINING = "training"
SAMPLING = frozenset({"generate", "verify"})
LEARNING_FROM = frozenset(SHARD_STAGES) - SAMPLING  # what was sampled beside one of these is no evaluation
EVALUATION_NAME = re.compile(
    r"(.*[-_.])?(eval|evaluations?|held[-_]?out|test|val|valid|validation|dev)([-_.*\d].*)?", re.IGNORECASE
)
ENDS_IN_NUMBER = re.compile(r".*?(\d+)")
UPDATE_LOCK = re.compile(r"\.(.+)\.lock")
FINISHED = ("complete", "stopped-by-reader")

State = Literal["running", "complete", "stopped-by-reader", "failed", "killed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One summary: where it stands, and the place in the run that it has.

    place: the path below the run with `*` for the iteration, such as `*/verify` or `policy/*`.
    purpose: `training`, or the name of an evaluation.
    """

    path: Path
    place: str
    iteration: int
    purpose: str
    summary: Summary

    @property
    def stage(self) -> str:
        """The stage that wrote the summary."""
        return self.summary.stage

    def state(self) -> State:
        """The summary's status; `killed` where it says running and no process holds the directory."""
        if self.summary.status == "running" and not is_locked(self.path / LOCK_NAME):
            return "killed"
        return self.summary.status

    def started(self) -> float | None:
        """When the stage began, in seconds since 1970; None where the summary does not say."""
        try:
            return datetime.fromisoformat(self.summary.started).timestamp()
        except (ValueError, TypeError):
            return None


@dataclass
class Run:
    """The summaries of a run, oldest iteration first.

    problems: a line for each that cannot be read; locks: the lock files of updates, held or not.
    """

    name: str
    path: Path
    entries: Sequence[Entry] = ()
    problems: list[str] = field(default_factory=list)
    locks: list[Path] = field(default_factory=list)

    @cached_property
    def _ended_well(self) -> dict[tuple[str, str], list[Entry]]:
        """By stage and purpose."""
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            if entry.summary.status in FINISHED:
                found.setdefault((entry.stage, entry.purpose), []).append(entry)
        return found

    def iterations(self) -> list[int]:
        """The iterations that have a summary, in order."""
        return sorted({entry.iteration for entry in self.entries})

    def purposes(self) -> list[str]:
        """`training`, where there is any, then the evaluations by name."""
        found = {entry.purpose for entry in self.entries}
        return [name for name in (TRAINING,) if name in found] + sorted(found - {TRAINING})

    def select(self, stage: str | None = None, purpose: str = TRAINING) -> Iterator[Entry]:
        """The entries of a purpose that have ended well, of one stage or of all."""
        if stage is not None:
            yield from self._ended_well.get((stage, purpose), [])
        else:
            yield from (
                entry for entry in self.entries if entry.purpose == purpose and entry.summary.status in FINISHED
            )

    def series(self, stage: str, metric: str, purpose: str = TRAINING) -> dict[int, float]:
        """A metric by iteration; over several directories of one, the mean by rows, of `seconds` and `rows` the sum."""
        values: dict[int, list[tuple[float, float]]] = {}
        for entry in self.select(stage, purpose):
            value = number(
                getattr(entry.summary, metric) if metric in ("seconds", "rows") else metric_of(entry, metric)
            )
            if value is not None:
                values.setdefault(entry.iteration, []).append((value, max(entry.summary.rows, 1)))
        if metric in ("seconds", "rows"):
            return {iteration: sum(value for value, _ in found) for iteration, found in values.items()}
        return {
            iteration: found[0][0]  # to the last digit, where there is but one
            if len(found) == 1
            else sum(value * rows for value, rows in found) / sum(rows for _, rows in found)
            for iteration, found in values.items()
        }

    def rollouts(self) -> dict[int, int]:
        """Rollouts sampled for training up to the end of each iteration."""
        sampled = self.series("generate", "rows") or self.series("verify", "rows")
        total, found = 0.0, {}
        for iteration in self.iterations():
            total += sampled.get(iteration, 0)
            found[iteration] = int(total)
        return found

    def seconds(self) -> dict[int, float]:
        """Seconds at work, of all stages of training together, up to the end of each iteration."""
        spent: dict[int, float] = {}
        for entry in self.select():
            spent[entry.iteration] = spent.get(entry.iteration, 0.0) + (number(entry.summary.seconds) or 0.0)
        total, found = 0.0, {}
        for iteration in self.iterations():
            total += spent.get(iteration, 0.0)
            found[iteration] = round(total, 3)
        return found


def number(value: object) -> float | None:
    """A finite number; None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def metric_of(entry: Entry, name: str) -> float | None:
    """A metric of a summary; None where it is missing or no number."""
    metrics = entry.summary.metrics
    return number(metrics.get(name)) if isinstance(metrics, dict) else None


def find_run(path: Path, name: str | None = None, *, may_be_empty: bool = False) -> Run:
    """The run in this directory. Raises InputError where there is none, or where several stand in it.

    may_be_empty: for a loop that has only begun, and of which no stage has written yet.
    """
    if not path.is_dir():
        raise InputError(
            f"{path}: {'is a file' if path.exists() else 'no such directory'}", "a run's directory is meant"
        )
    run = Run(name or path.resolve().name, path)
    found: list[tuple[Path, tuple[str, ...], Summary]] = []
    for directory, files in _directories(path):
        run.locks += [directory / file for file in files if file != LOCK_NAME and UPDATE_LOCK.fullmatch(file)]
        if SUMMARY_NAME not in files:
            continue
        try:
            summary = read_summary(directory)
        except InputError as error:
            run.problems.append(error.message)
            continue
        if summary is not None:  # None: removed since it was listed
            found.append((directory, directory.relative_to(path).parts, summary))
    if not found and not run.problems and not may_be_empty:
        raise InputError(f"{path}: no _summary.json below it", "a run is a directory that stages have written into")
    run.entries = tuple(sorted(_entries(path, found), key=lambda entry: (entry.iteration, _order(entry), entry.place)))
    _check_one_run(run)
    return run


def _directories(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Directories below the run with their files; symbolic links are followed, each directory is taken once."""
    seen: set[str] = set()
    for directory, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith((TEMPORARY_PREFIX, ".")) and name != "trainer")
        yield Path(directory), files


def _order(entry: Entry) -> int:
    return STAGES.index(entry.stage) if entry.stage in STAGES else len(STAGES)


def split_path(parts: tuple[str, ...]) -> tuple[int | None, str]:
    """The iteration that a path names, and the path with `*` for it.

    >>> split_path(("eval", "3", "verify")), split_path(("step-12", "verify")), split_path(("verify",))
    ((3, 'eval/*/verify'), (12, 'step-*/verify'), (None, 'verify'))
    """
    for pattern in (re.compile(r"()(\d+)"), re.compile(r"(.*?)(\d+)")):
        for place, part in enumerate(parts):
            match = pattern.fullmatch(part)
            if match:
                return int(match[2]), "/".join((*parts[:place], f"{match[1]}*", *parts[place + 1 :]))
    return None, "/".join(parts)


def _entries(root: Path, found: list[tuple[Path, tuple[str, ...], Summary]]) -> list[Entry]:
    own = ENDS_IN_NUMBER.fullmatch(root.resolve().name)
    alone = int(own[1]) if own else 0
    places = {path: split_path(parts) for path, parts, _ in found}
    # by place, since in the iteration that has only begun the later stages are still to come
    sampled = {_above(places[path][1]) for path, _, summary in found if summary.stage in SAMPLING}
    learned_from = sampled & {_above(places[path][1]) for path, _, summary in found if summary.stage in LEARNING_FROM}
    entries = []
    for path, _, summary in found:
        iteration, place = places[path]
        purpose = _evaluation(place)
        if purpose is None and summary.stage in SAMPLING and learned_from and _above(place) not in learned_from:
            purpose = "/".join(part for part in place.split("/")[:-1] if "*" not in part) or "evaluation"
        entries.append(Entry(path, place, alone if iteration is None else iteration, purpose or TRAINING, summary))
    return entries


def _above(place: str) -> str:
    return place.rpartition("/")[0]


def _evaluation(place: str) -> str | None:
    """What evaluation a place is of: its path without the iteration and the stage; None for training."""
    parts = place.split("/")
    if not any(EVALUATION_NAME.fullmatch(part) for part in parts):
        return None
    named = [part.replace("*", "").strip("-_.") for part in parts if part != "*"]
    return "/".join(part for part in named if part and part not in STAGES) or "evaluation"


def _check_one_run(run: Run) -> None:
    """Raises InputError where one stage stands in two places of one iteration that differ before the iteration."""
    first: dict[tuple[str, str, int], Entry] = {}
    for entry in run.entries:
        if "*" not in entry.place:
            continue
        other = first.setdefault((entry.stage, entry.purpose, entry.iteration), entry)
        head, other_head = (found.place.partition("*")[0] for found in (entry, other))
        if entry.purpose == TRAINING and head != other_head:
            roots = " and ".join(str(run.path / found) for found in sorted({head, other_head}))
            raise InputError(
                f"{run.path} holds several runs: {entry.stage} has written for both {roots}", "name each run"
            )


def wall_seconds(run: Run) -> list[float]:
    """How long each finished iteration took on the clock: from its start to the next one's."""
    starts: dict[int, float] = {}
    for entry in run.entries:
        began = entry.started()
        if began is not None and entry.purpose == TRAINING:
            starts[entry.iteration] = min(began, starts.get(entry.iteration, began))
    ordered = sorted(starts)
    return [starts[after] - starts[before] for before, after in itertools.pairwise(ordered)]


def typical_seconds(run: Run) -> float | None:
    """The median of `wall_seconds`, which a night between two iterations does not change; None before the second."""
    lengths = [seconds for seconds in wall_seconds(run) if seconds > 0]
    return statistics.median(lengths) if lengths else None
