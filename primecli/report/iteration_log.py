"""Logs the numbers of a run by iteration, as they arrive: what `primecli watch --log` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from primecli.errors import InputError
from primecli.files import reporting_disk_errors
from primecli.pipeline.loggers import Log, TensorBoard, Wandb, check, read_state, replace_state
from primecli.report.charts import CHARTS
from primecli.report.curves import stage_seconds
from primecli.report.runs import Run

ITERATIONS = "iterations"

Points = dict[str, dict[int, float]]
"""Values by metric and iteration."""


class IterationLog:
    """Logs a run's numbers by iteration; each call of `update` logs what is not logged yet.

    names: of the loggers. directory: where they write. warn, note: take a line about what failed, and about what the
    user may want to know. Raises UsageError for a logger that cannot work here.
    """

    def __init__(
        self, names: Sequence[str], directory: Path, *, warn: Callable[[str], None], note: Callable[[str], None]
    ) -> None:
        check(names)
        self.directory = directory
        self._logs: list[tuple[Log, Points]] = []  # with what each has logged
        for name in dict.fromkeys(names):
            if name == TensorBoard.name:  # starts with nothing logged: it writes everything again, replacing the old
                self._logs.append((Log([TensorBoard(directory / name / ITERATIONS, note)], warn), {}))
            else:
                wandb = Wandb(directory, ITERATIONS, {"*": "iteration"}, {}, note)
                self._logs.append((Log([wandb], warn), _read_points(self._logged_file)))

    @property
    def _logged_file(self) -> Path:
        return self.directory / "wandb-iterations-logged.json"

    def update(self, run: Run) -> None:
        """Logs the values that are new, or have changed, since the last call."""
        points = by_iteration(run)
        for log, logged in self._logs:
            before = {name: dict(values) for name, values in logged.items()}
            for logger in log.loggers:
                if isinstance(logger, TensorBoard) and _goes_back(points, logged):
                    logger.close(ok=True)
                    logged.clear()
            for iteration, row in new_rows(points, logged):
                log.write(iteration, row)
                for name, value in row.items():
                    logged.setdefault(name, {})[iteration] = value
            if logged != before and any(isinstance(logger, Wandb) for logger in log.loggers):
                with reporting_disk_errors("write", self._logged_file):
                    replace_state(self._logged_file, logged)

    def close(self) -> None:
        """Closes all loggers."""
        for log, _ in self._logs:
            log.close(ok=True)


def new_rows(points: Points, logged: Points) -> list[tuple[int, dict[str, float]]]:
    """The points that are not logged, or were logged with another value: one row per iteration.

    >>> new_rows({"a": {1: 0.5, 2: 0.75}, "b": {2: 3.0}}, {"a": {1: 0.5}})
    [(2, {'a': 0.75, 'b': 3.0})]
    """
    rows: dict[int, dict[str, float]] = {}
    for name, values in points.items():
        for iteration, value in values.items():
            if logged.get(name, {}).get(iteration) != value:
                rows.setdefault(iteration, {})[name] = value
    return sorted(rows.items())


def _goes_back(points: Points, logged: Points) -> bool:
    """Whether a metric has a new value at an iteration that is not after all of its logged ones."""
    return any(
        name in logged and iteration <= max(logged[name]) for iteration, row in new_rows(points, logged) for name in row
    )


def _read_points(path: Path) -> Points:
    state = read_state(path, dict[str, float])
    try:
        return {name: {int(key): value for key, value in points.items()} for name, points in state.items()}
    except ValueError as error:
        raise InputError(f"{path}: not a file that watch has written: {error}", "remove it") from error


def by_iteration(run: Run) -> Points:
    """The numbers that a report would draw, by metric and iteration, with rollouts and the seconds of each stage.

    A metric is named after its stage, as `update_prm/pair_accuracy_before`; in an evaluation after the evaluation, as
    `eval/accuracy`.
    """
    points: Points = {}
    for line in (line for chart in CHARTS for line in chart.lines):
        if line.evaluations:
            for name in run.evaluations():
                _add(points, f"{_metric_name(name)}/{line.metric}", run.series(line.stage, line.metric, name))
        else:
            _add(points, f"{_metric_name(line.stage)}/{line.metric}", run.series(line.stage, line.metric))
    for stage, seconds in stage_seconds(run).items():
        points[f"seconds/{_metric_name(stage)}"] = seconds
    if sampled := run.series("generate", "rows") or run.series("verify", "rows"):
        total = run.total_rollouts()
        points["rollouts"] = {iteration: float(total[iteration]) for iteration in sampled}
    return points


def _add(points: Points, name: str, values: dict[int, float]) -> None:
    if values:
        points[name] = values


def _metric_name(name: str) -> str:
    """A name in the characters that wandb accepts: letters, digits, underscores and slashes."""
    return "".join(letter if letter.isalnum() or letter in "_/" else "_" for letter in name)
