"""Compare estimators with and without process rewards: held-out accuracy by rollouts used, over seeds.

Reads runs of the Makefile, prints their mean and standard error, and writes all of them as CSV in long form and as
a picture. Rollouts used are all that were sampled, including those that the filter dropped. Differences are between
runs with the same seed, and so the same training prompts.

Example:
    make -C examples/arithmetic -j2 compare
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import curves
from curves import Point, Run

QUANTITY = "heldout_accuracy"
LABELS = {"process": "outcome + process rewards", "outcome": "outcome rewards only"}


def estimators_of(runs: Sequence[Run]) -> list[str]:
    """The estimators of the runs, each once, in the order of the runs."""
    return list(dict.fromkeys(run.estimator for run in runs))


def kinds_of(runs: Sequence[Run], estimator: str) -> list[str]:
    """Which of the kinds outcome and process there are for an estimator."""
    return [
        kind for kind in ("outcome", "process") if any((run.estimator, run.kind) == (estimator, kind) for run in runs)
    ]


def rollouts_to(points: Sequence[Point], accuracy: float) -> float | None:
    """The number of rollouts at which a curve first reaches an accuracy, interpolated; None if it never does.

    >>> rollouts_to([Point(0, 0.2, None), Point(100, 0.4, None)], 0.3)
    50.0
    """
    for before, after in pairwise(points):
        if after.mean >= accuracy > before.mean:
            share = (accuracy - before.mean) / (after.mean - before.mean)
            return round(before.x + share * (after.x - before.x), 6)
    return None


def gains(outcome: Sequence[Run], process: Sequence[Run], xs: Sequence[float]) -> Point | None:
    """Held-out accuracy with process rewards minus that without, for the same seed, averaged over these x."""
    values = {run.seed: curves.values_of(run, QUANTITY) for run in outcome}
    differences = [
        statistics.fmean(with_process[x] - values[run.seed][x] for x in xs)
        for run in process
        if run.seed in values
        for with_process in [curves.values_of(run, QUANTITY)]
    ]
    return curves.mean_and_error(xs[-1], differences) if differences else None


def gain_rows(runs: Sequence[Run]) -> Iterator[list[str]]:
    """What process rewards change, by estimator: at the end, averaged over the run, and in the rollouts needed."""
    for estimator in estimators_of(runs):
        if kinds_of(runs, estimator) != ["outcome", "process"]:
            continue
        outcome, process = curves.of(runs, estimator, "outcome"), curves.of(runs, estimator, "process")
        xs = curves.shared([*outcome, *process], QUANTITY)
        points = [gains(outcome, process, chosen) for chosen in (xs[-1:], xs[1:])]
        target = curves.at(outcome, QUANTITY, xs)[-1]
        reached = rollouts_to(curves.at(process, QUANTITY, xs), target.mean)
        yield [
            curves.NAMES[estimator],
            *(f"{'+' if point.mean >= 0 else ''}{point}" if point else "" for point in points),
            f"{reached / target.x:.0%}" if reached else "not reached",
        ]


def accuracy_rows(runs: Sequence[Run]) -> Iterator[list[str]]:
    """Mean and standard error of every curve."""
    for estimator in estimators_of(runs):
        for kind in kinds_of(runs, estimator):
            points = curves.at(curves.of(runs, estimator, kind), QUANTITY, curves.shared(runs, QUANTITY))
            yield [f"{curves.NAMES[estimator]}, {kind}", *(str(point) for point in points)]


def draw(runs: Sequence[Run], path: Path) -> None:
    """One panel per estimator, all with the same axes."""
    from matplotlib.ticker import MaxNLocator

    names, xs = estimators_of(runs), curves.shared(runs, QUANTITY)
    columns = 2 if len(names) > 1 else 1
    lines = -(-len(names) // columns)
    figure, panels = curves.new_figure(lines, columns, (3.6 * columns, 2.6 * lines + 0.5))
    for index, panel in enumerate(panels):
        if index >= len(names):
            panel.set_axis_off()
            continue
        for kind in kinds_of(runs, names[index]):
            points = curves.at(curves.of(runs, names[index], kind), QUANTITY, xs)
            curves.draw(panel, points, kind, LABELS[kind])
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set_title(curves.NAMES[names[index]])
        panel.set_ylim(curves.limits(runs, QUANTITY))
        panel.set_xlim(0, 1.04 * xs[-1])
        if index % columns == 0:
            panel.set_ylabel("held-out accuracy")
        if index + columns >= len(names):
            panel.set_xlabel("rollouts used")
    handles = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, title=curves.over(runs))
    curves.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    options = curves.argument_parser(__doc__).parse_args(arguments)
    runs = curves.read_runs(options.runs)
    curves.write_csv(options.csv, runs)
    rollouts = [f"{x:.0f}" for x in curves.shared(runs, QUANTITY)]
    curves.print_table(
        f"held-out accuracy by rollouts used, {curves.over(runs)}",
        ["estimator, rewards", *rollouts],
        accuracy_rows(runs),
    )
    curves.print_table(
        "with process rewards minus without, by seed; rollouts needed for the final accuracy of outcome rewards alone",
        ["estimator", "at the end", "mean over the run", "rollouts, of all"],
        gain_rows(runs),
    )
    print(f"all runs: {options.csv}")
    if options.plot:
        with curves.style():
            draw(runs, options.plot)
        print(f"picture: {options.plot}")


if __name__ == "__main__":
    main()
