"""What runs have measured, by iteration: the lines of the charts, seconds, every metric, and how runs differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from primecli.catalog import STAGES
from primecli.report.charts import Chart, Line
from primecli.report.runs import TRAINING, Entry, Run, evaluations_of, finite_number, stage_order


@dataclass(frozen=True, slots=True)
class Series:
    """One line of one run.

    run: the index of the run among those of the report.
    label: its name in the legend.
    style: which line of its chart it is, from 0; the same for every run.
    values: by iteration.
    """

    run: int
    label: str
    style: int
    values: dict[int, float]


def chart_series(chart: Chart, runs: Sequence[Run]) -> list[Series]:
    """The lines of a chart, run after run; a line for which a run has no values is left out."""
    evaluations = evaluations_of(runs)
    lines: list[tuple[Line, str]] = []
    for line in chart.lines:
        lines += [(line, purpose) for purpose in (evaluations if line.evaluations else [TRAINING])]
    series = []
    for index, run in enumerate(runs):
        for style, (line, purpose) in enumerate(lines):
            values = run.series(line.stage, line.metric, purpose)
            if values:
                series.append(Series(index, line.label.format(purpose), style, values))
    return series


def stage_seconds(run: Run) -> dict[str, dict[int, float]]:
    """Seconds by stage and iteration, in the order of an iteration; all evaluations together are `evaluation`."""
    stages = [*STAGES, *sorted({entry.stage for entry in run.entries} - set(STAGES))]
    seconds = {stage: run.series(stage, "seconds") for stage in stages}
    evaluation: dict[int, float] = {}
    for purpose in run.evaluations():
        for entry in run.select(None, purpose):
            spent = finite_number(entry.summary.seconds) or 0.0
            evaluation[entry.iteration] = evaluation.get(entry.iteration, 0.0) + spent
    seconds["evaluation"] = evaluation
    return {stage: values for stage, values in seconds.items() if any(values.values())}


def all_metrics(runs: Sequence[Run]) -> dict[str, list[dict[int, float]]]:
    """Every metric of every stage, as `stage metric` or `stage metric (evaluation)`: its values in each run."""
    names: dict[tuple[str, str, str], None] = {}  # a dict as an ordered set
    for run in runs:
        for purpose in run.purposes():
            for entry in run.select(None, purpose):
                metrics = entry.summary.metrics if isinstance(entry.summary.metrics, dict) else {}
                names |= {(entry.stage, metric, purpose): None for metric in metrics}
    ordered = sorted(names, key=lambda name: (name[2] != TRAINING, stage_order(name[0]), name[1]))
    metrics_by_label = {}
    for stage, metric, purpose in ordered:
        label = f"{stage} {metric}" + ("" if purpose == TRAINING else f" ({purpose})")
        values = [run.series(stage, metric, purpose) for run in runs]
        if any(values):
            metrics_by_label[label] = values
    return metrics_by_label


CHANGES_EACH_ITERATION = frozenset({"policy", "prm", "critic", "model", "step", "groups_wanted_still"})
"""Options that differ between the iterations of one run, and so say nothing about two runs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """An option that the runs do not share.

    stage: the stage that it belongs to.
    option: its name, such as lr; `ran` if only some of the runs have the stage at all.
    values: the value of each run, as text.
    """

    stage: str
    option: str
    values: tuple[str, ...]


def configuration_differences(runs: Sequence[Run]) -> list[Difference]:
    """How the configurations of the runs differ, each taken from the run's last iteration."""
    configs: list[dict[str, dict[str, Any]]] = []
    for run in runs:
        last: dict[str, Entry] = {entry.stage: entry for entry in run.select()}
        configs.append({stage: entry.summary.config for stage, entry in last.items()})
    differences = []
    for stage in sorted({stage for config in configs for stage in config}, key=stage_order):
        if not all(stage in config for config in configs):
            differences.append(
                Difference(stage, "ran", tuple("yes" if stage in config else "no" for config in configs))
            )
            continue
        for option in dict.fromkeys(option for config in configs for option in config[stage]):
            values = [config[stage].get(option) for config in configs]
            if option not in CHANGES_EACH_ITERATION and any(value != values[0] for value in values):
                differences.append(Difference(stage, option, tuple(map(_as_text, values))))
    return differences


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
