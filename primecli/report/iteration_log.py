"""The numbers of a run by iteration, given to loggers as they come: what `primecli watch --log` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from primecli.errors import InputError
from primecli.files import reporting_disk_errors
from primecli.pipeline.loggers import Log, TensorBoard, Wandb, check, read_state, replace_state
from primecli.report.curves import CHARTS, stage_seconds
from primecli.report.runs import TRAINING, Run

ITERATIONS = "iterations"

Points = dict[str, dict[int, float]]
"""Values by metric and iteration."""


class IterationLog:
    """The log of a run's numbers by iteration: what `update` finds that is not logged yet.

    Raises UsageError for a logger that cannot work here.
    """

    def __init__(
        self, names: Sequence[str], directory: Path, *, warn: Callable[[str], None], note: Callable[[str], None]
    ) -> None:
        check(names)
        self.directory = directory
        self._parts: list[tuple[Log, Points]] = []
        for name in dict.fromkeys(names):
            if name == TensorBoard.name:  # says it all anew, which replaces what is there
                self._parts.append((Log([TensorBoard(directory / name / ITERATIONS)], warn), {}))
            else:
                part = Wandb(directory, ITERATIONS, {"*": "iteration"}, {}, note)
                self._parts.append((Log([part], warn), _read_points(self._logged_file)))

    @property
    def _logged_file(self) -> Path:
        return self.directory / "wandb-iterations-logged.json"

    def update(self, run: Run) -> None:
        """Logs the values that have come, or have changed, since the last time."""
        found = by_iteration(run)
        for log, logged in self._parts:
            kept = {name: dict(values) for name, values in logged.items()}
            for logger in log.loggers:
                if isinstance(logger, TensorBoard) and _goes_back(found, logged):
                    logger.close(ok=True)
                    logged.clear()
            for iteration, row in rows(found, logged):
                log.write(iteration, row)
                for name, value in row.items():
                    logged.setdefault(name, {})[iteration] = value
            if logged != kept and any(isinstance(logger, Wandb) for logger in log.loggers):
                with reporting_disk_errors("write", self._logged_file):
                    replace_state(self._logged_file, logged)

    def close(self) -> None:
        """Ends all loggers."""
        for log, _ in self._parts:
            log.close(ok=True)


def rows(found: Points, logged: Points) -> list[tuple[int, dict[str, float]]]:
    """What is not logged as it was found, a row an iteration.

    >>> rows({"a": {1: 0.5, 2: 0.75}, "b": {2: 3.0}}, {"a": {1: 0.5}})
    [(2, {'a': 0.75, 'b': 3.0})]
    """
    new: dict[int, dict[str, float]] = {}
    for name, values in found.items():
        for iteration, value in values.items():
            if logged.get(name, {}).get(iteration) != value:
                new.setdefault(iteration, {})[name] = value
    return sorted(new.items())


def _goes_back(found: Points, logged: Points) -> bool:
    """Whether a metric has a new value at an iteration that is not after those which are logged."""
    return any(
        name in logged and iteration <= max(logged[name]) for iteration, row in rows(found, logged) for name in row
    )


def _read_points(path: Path) -> Points:
    try:
        return {name: {int(key): value for key, value in points.items()} for name, points in read_state(path).items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path}: is not what watch has written: {error}", "remove it") from error


def by_iteration(run: Run) -> Points:
    """The numbers of a run that a report draws, by metric and iteration, and its rollouts and seconds by stage.

    Named by stage, as `update_prm/pair_accuracy_before`; those of an evaluation by the evaluation, as `eval/accuracy`.
    """
    found: Points = {}
    for line in (line for chart in CHARTS for line in chart.lines):
        for purpose in run.purposes() if line.evaluations else [TRAINING]:
            if line.evaluations and purpose == TRAINING:
                continue
            values = run.series(line.stage, line.metric, purpose)
            if values:
                found[f"{_plain(purpose if line.evaluations else line.stage)}/{line.metric}"] = values
    for stage, seconds in stage_seconds(run).items():
        found[f"seconds/{_plain(stage)}"] = seconds
    if sampled := run.series("generate", "rows") or run.series("verify", "rows"):
        total = run.rollouts()
        found["rollouts"] = {iteration: float(total[iteration]) for iteration in sampled}
    return found


def _plain(name: str) -> str:
    """As wandb wants names of metrics: letters, digits, underscores, slashes."""
    return "".join(letter if letter.isalnum() or letter in "_/" else "_" for letter in name)
