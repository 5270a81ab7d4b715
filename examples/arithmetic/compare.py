"""Compare estimators with and without process rewards: held-out accuracy by rollouts used, over seeds.

Reads runs of the Makefile, prints their mean and standard error, and writes all of them as CSV in long form and as
a picture. Rollouts used are all that were sampled, those that the filter dropped too. Differences are between runs of
the same seed, so of the same training prompts.

Example:
    make -C examples/arithmetic -j2 compare
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import curves
from curves import Point, Run

QUANTITY = "heldout_accuracy"
LABELS = {"process": "outcome + process rewards", "outcome": "outcome rewards only"}


def estimators_of(runs: Sequence[Run]) -> list[str]:
    """The estimators of the runs, each once, in their order."""
    return list(dict.fromkeys(run.estimator for run in runs))


def kinds_of(runs: Sequence[Run], estimator: str) -> list[str]:
    """Which of outcome and process there is of an estimator."""
    return [
        kind for kind in ("outcome", "process") if any((run.estimator, run.kind) == (estimator, kind) for run in runs)
    ]


def mean_over_run(run: Run) -> float:
    """Held-out accuracy as a mean over the run's evaluations after the SFT model: how high and how early in one."""
    return statistics.fmean(value for rollouts, value in curves.values_of(run, QUANTITY).items() if rollouts)


def final(run: Run) -> float:
    """Held-out accuracy of the last evaluation."""
    found = curves.values_of(run, QUANTITY)
    return found[max(found)]


def rollouts_to(points: Sequence[Point], accuracy: float) -> float | None:
    """Rollouts after which a curve first reaches an accuracy, interpolated; None where it never does.

    >>> rollouts_to([Point(0, 0.2, None), Point(100, 0.4, None)], 0.3)
    50.0
    """
    for before, after in pairwise(points):
        if after.mean >= accuracy > before.mean:
            share = (accuracy - before.mean) / (after.mean - before.mean)
            return round(before.x + share * (after.x - before.x), 6)
    return None


def gain_rows(runs: Sequence[Run]) -> Iterator[list[str]]:
    """What process rewards change, by estimator."""
    for estimator in estimators_of(runs):
        if kinds_of(runs, estimator) != ["outcome", "process"]:
            continue
        outcome, process = curves.of(runs, estimator, "outcome"), curves.of(runs, estimator, "process")
        pairs = [(one, other) for one in outcome for other in process if one.seed == other.seed]
        differences = [
            curves.mean_and_error(0, [measure(other) - measure(one) for one, other in pairs]) if pairs else None
            for measure in (final, mean_over_run)
        ]
        target = curves.curve(outcome, QUANTITY)[-1]
        reached = rollouts_to(curves.curve(process, QUANTITY), target.mean)
        yield [
            curves.NAMES[estimator],
            *(f"{'+' if point.mean >= 0 else ''}{point}" if point else "" for point in differences),
            f"{reached / target.x:.0%}" if reached else "not reached",
        ]


def accuracy_rows(runs: Sequence[Run]) -> Iterator[list[str]]:
    """Mean and standard error of every curve."""
    for estimator in estimators_of(runs):
        for kind in kinds_of(runs, estimator):
            points = curves.curve(curves.of(runs, estimator, kind), QUANTITY)
            yield [f"{curves.NAMES[estimator]}, {kind}", *(str(point) for point in points)]


def draw(runs: Sequence[Run], path: Path) -> None:
    """A panel an estimator, all on the same axes."""
    names = estimators_of(runs)
    columns = 2 if len(names) > 1 else 1
    lines = -(-len(names) // columns)
    figure, panels = curves.new_figure(lines, columns, (3.6 * columns, 2.6 * lines + 0.5))
    for place, panel in enumerate(panels):
        if place >= len(names):
            panel.set_axis_off()
            continue
        for kind in kinds_of(runs, names[place]):
            points = curves.curve(curves.of(runs, names[place], kind), QUANTITY)
            curves.draw(panel, points, kind, LABELS[kind])
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set_title(curves.NAMES[names[place]], loc="left", fontweight="bold")
        panel.set_ylim(curves.limits(runs, QUANTITY))
        panel.set_xlim(left=0)
        if place % columns == 0:
            panel.set_ylabel("held-out accuracy")
        if place + columns >= len(names):
            panel.set_xlabel("rollouts used")
    handles = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, frameon=False)
    curves.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="all runs in long form")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .svg or .png; needs matplotlib")
    options = parser.parse_args(arguments)
    runs = curves.read_runs(options.runs)
    curves.write_csv(options.csv, runs)
    rollouts = [f"{point.x:.0f}" for point in curves.curve(runs, QUANTITY)]
    curves.print_table(
        f"held-out accuracy by rollouts used, {curves.over(runs)}",
        ["estimator, rewards", *rollouts],
        accuracy_rows(runs),
    )
    curves.print_table(
        "with process rewards less without, by seed; rollouts needed for what outcome rewards alone end with",
        ["estimator", "at the end", "mean over the run", "rollouts, of the whole"],
        gain_rows(runs),
    )
    print(f"all runs: {options.csv}")
    if options.plot:
        draw(runs, options.plot)
        print(f"picture: {options.plot}")


if __name__ == "__main__":
    main()
