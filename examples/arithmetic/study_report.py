"""What came out of study.py: learning rates of the screening, the finals, and the process rewards against the truth.

Differences are paired by seed: both arms sample the same prompts. Intervals are 95%, by Student's t over seeds; those
of ratios by resampling seeds. The scale is the way from outcomes alone to the oracle, which knows the wrong steps.

Example:
    python examples/arithmetic/study_report.py examples/arithmetic/results/study.csv
    python examples/arithmetic/study_report.py --plan worst-step examples/arithmetic/results/study-worst-step.csv
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev

import curves as drawing
from study import ARMS, PLANS, Curve, Plan, Run, area, curves_of

T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 0.975 quantiles of Student's t by degrees of freedom."""

RESAMPLES = 10_000
TARGETS = (0.5, 0.6, 0.7, 0.8)
FILTERS = ("-cut", "-any")  # end the names of the arms that keep groups with truncated responses, and all groups
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
    "#882255",
    "#117733",
    "#AA4499",
)
MARKERS = "os^Dv<>PX*"  # not as many as colours, so that no pair comes twice

Rows = Sequence[Mapping[str, str]]


class Results:
    """The rows of a study."""

    def __init__(self, rows: Rows, plan: Plan) -> None:
        self.rows, self.plan = rows, plan
        self.curves = curves_of(rows)
        finals = plan.finals or plan.screening
        self.finals: dict[str, dict[int, Run]] = {}
        for arm in plan.arms:
            rates = [[run for seed in finals if self.whole(run := Run(arm, lr, seed))] for lr in plan.lrs]
            if best := max(rates, key=lambda runs: (len(runs), fmean(map(self.area, runs)) if runs else 0.0)):
                self.finals[arm] = {run.seed: run for run in best}

    def whole(self, run: Run) -> bool:
        """Whether a run has come to its end."""
        return self.plan.iterations in self.curves.get(run, {})

    def collapsed(self, run: Run) -> bool:
        """Whether a run ended because no group of its rollouts had both right and wrong responses."""
        return 0.0 in self.of(run, "groups_kept").values()

    def of(self, run: Run, column: str) -> Curve:
        """A column of a run by iteration, where it is measured."""
        return {
            int(row["iteration"]): float(row[column])
            for row in self.rows
            if Run(row["arm"], row["lr"], int(row["seed"])) == run and row[column]
        }

    def values(self, arm: str, measure: Callable[[Run], float]) -> dict[int, float]:
        """A measure of each final run of an arm, by seed."""
        return {seed: measure(run) for seed, run in self.finals[arm].items()}

    def last(self, run: Run) -> float:
        """Held-out accuracy at the end."""
        return self.curves[run][self.plan.iterations]

    def area(self, run: Run) -> float:
        """The mean held-out accuracy of a run's evaluations: high for one that learns early and does not collapse."""
        return area(self.curves[run])

    def rollouts_to(self, run: Run, target: float) -> float:
        """The rollouts until held-out accuracy first reaches a target, between evaluations by a line; inf if never."""
        rollouts = self.of(run, "rollouts")
        points = [(rollouts[iteration], accuracy) for iteration, accuracy in sorted(self.curves[run].items())]
        return first_crossing(points, target)

    def seconds(self, run: Run) -> float:
        """The seconds of all stages, evaluations left out."""
        return sum(self.of(run, "seconds").values())


def first_crossing(points: Sequence[tuple[float, float]], target: float) -> float:
    """The x at which a polygon first reaches a height; inf if it does not.

    >>> first_crossing([(0, 0.25), (100, 0.75), (200, 0.5)], 0.5), first_crossing([(0, 0.2), (9, 0.3)], 0.4)
    (50.0, inf)
    """
    left, low = points[0]
    if low >= target:
        return left
    for right, high in points[1:]:
        if high >= target:
            return left + (right - left) * (target - low) / (high - low)
        left, low = right, high
    return math.inf


def interval(values: Sequence[float]) -> str:
    """The mean of some seeds, with its 95% interval by Student's t where there are several; empty where there are none.

    >>> interval([0.1, 0.2, 0.3]), interval([0.1])
    ('+0.200 [-0.048, +0.448]', '+0.100')
    """
    if not values:
        return ""
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = T_QUANTILES[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> str:
    """The ratio of two means over the same seeds, with its 95% interval by resampling seeds.

    >>> ratio_interval([1.0, 1.0], [2.0, 2.0])
    '0.50 [0.50, 0.50]'
    """
    generator = random.Random(0)
    ratios = []
    for _ in range(RESAMPLES):
        picks = generator.choices(range(len(above)), k=len(above))
        bottom = fmean(below[pick] for pick in picks)
        ratios.append(fmean(above[pick] for pick in picks) / bottom if bottom else math.inf)
    ratios.sort()
    bottom = fmean(below)
    share = fmean(above) / bottom if bottom else math.inf
    return f"{share:.2f} [{ratios[int(0.025 * RESAMPLES)]:.2f}, {ratios[int(0.975 * RESAMPLES)]:.2f}]"


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """The differences of two arms, seed by seed."""
    return [value - other[seed] for seed, value in one.items() if seed in other]


def screening(results: Results) -> None:
    """The area of every run of the screening, and where those that were stopped had come to."""

    def cell(arm: str, lr: str) -> str:
        cells = []
        for seed in results.plan.screening:
            run = Run(arm, lr, seed)
            curve = results.curves.get(run)
            if curve is None:
                cells.append("")
            elif results.whole(run):
                fell = ", collapsed" if results.collapsed(run) else ""
                cells.append(f"{results.area(run):.3f} ({results.last(run):.3f}{fell})")
            else:
                cells.append(f"stopped at {curve[max(curve)]:.3f}")
        return ", ".join(cells)

    header = ["arm", *(f"lr {lr}" for lr in results.plan.lrs)]
    rows = [[arm, *(cell(arm, lr) for lr in results.plan.lrs)] for arm in results.plan.arms]
    seeds = ", ".join(map(str, results.plan.screening))
    title = f"Screening, seed {seeds}: mean held-out accuracy of the evaluations (the last of them)"
    drawing.print_table(title, header, rows)


def finals(results: Results) -> None:
    """Every finalist against outcomes alone, under the same filter."""
    rows = []
    for arm, runs in results.finals.items():
        areas, lasts = results.values(arm, results.area), results.values(arm, results.last)
        collapsed = sum(map(results.collapsed, runs.values()))
        outcome, oracle = references(arm)
        compared = arm != outcome and outcome in results.finals
        rows.append(
            [
                arm,
                next(iter(runs.values())).lr,
                f"{len(runs)}, {collapsed} collapsed" if collapsed else str(len(runs)),
                f"{fmean(lasts.values()):.3f}",
                interval(paired(lasts, results.values(outcome, results.last))) if compared else "",
                f"{fmean(areas.values()):.3f}",
                interval(paired(areas, results.values(outcome, results.area))) if compared else "",
                share_of_gain(results, arm, outcome, oracle) if compared and arm != oracle else "",
                *(reached(results, arm, target) for target in TARGETS),
                f"{fmean(results.values(arm, results.seconds).values()):.0f}",
            ]
        )
    header = ["arm", "lr", "seeds", "last", "- outcome", "area", "- outcome", "share of the oracle's gain"]
    header += [f"rollouts to {target:g}" for target in TARGETS] + ["seconds"]
    drawing.print_table("Finals, at each arm's best learning rate", header, rows)


def references(arm: str) -> tuple[str, str]:
    """The arms with which an arm is compared: outcomes alone, and the oracle, under its filter.

    >>> references("ce"), references("ce-cut")
    (('outcome', 'oracle'), ('outcome-cut', 'oracle-cut'))
    """
    suffix = next(filter(arm.endswith, FILTERS), "")
    return f"outcome{suffix}", f"oracle{suffix}"


def share_of_gain(results: Results, arm: str, outcome: str, oracle: str) -> str:
    """Which share of the way from outcomes to the oracle an arm goes, by areas; empty without finals of the oracle."""
    if oracle not in results.finals:
        return ""
    bottom, own, top = (results.values(name, results.area) for name in (outcome, arm, oracle))
    seeds = sorted(bottom.keys() & own.keys() & top.keys())
    if not seeds:
        return ""
    return ratio_interval([own[seed] - bottom[seed] for seed in seeds], [top[seed] - bottom[seed] for seed in seeds])


def reached(results: Results, arm: str, target: float) -> str:
    """The median over seeds of the rollouts to a target, and how many seeds came there if not all did."""
    values = list(results.values(arm, lambda run: results.rollouts_to(run, target)).values())
    came = sum(map(math.isfinite, values))
    middle = median(values)
    count = "" if came == len(values) else f" ({came} of {len(values)})"
    return (f"{middle:.0f}" if math.isfinite(middle) else "-") + count


def truth(results: Results) -> None:
    """The process rewards of wrong responses against the truth, early and late in the runs of the finals."""
    half = results.plan.iterations // 2
    columns = ("prm_pair_accuracy_before", "share", "correlation", "after", "format")
    rows = []
    for arm, runs in results.finals.items():
        for name, low, high in (("first", 1, half), ("second", half + 1, results.plan.iterations)):
            cells = []
            for column in columns:
                values = [
                    value
                    for run in runs.values()
                    for iteration, value in results.of(run, column).items()
                    if low <= iteration <= high
                ]
                cells.append(f"{fmean(values):.3f}" if values else "")
            if cells[1]:
                rows.append([arm, name, *cells])
    header = [
        "arm",
        "half",
        "pairs right before",
        "lowest line is first wrong",
        "correlation",
        "right after wrong",
        "format",
    ]
    drawing.print_table("Process rewards of wrong responses against the truth (see credit.py)", header, rows)


def plot(results: Results, path: Path) -> None:
    """Held-out accuracy of the arms with all seeds of the finals: the mean, with a band of one standard error.

    Dashed lines are of arms that drop groups with truncated responses.
    """
    most = max(map(len, results.finals.values()))
    whole = {arm: runs for arm, runs in results.finals.items() if len(runs) == most}
    with drawing.style():
        figure, (panel,) = drawing.new_figure(1, 1, (9.0, 4.2))
        for index, (arm, runs) in enumerate(whole.items()):
            lr = next(iter(runs.values())).lr
            shared = sorted(set.intersection(*(set(results.curves[run]) for run in runs.values())))
            rollouts = results.of(next(iter(runs.values())), "rollouts")
            points = [
                drawing.mean_and_error(rollouts[step], [results.curves[run][step] for run in runs.values()])
                for step in shared
            ]
            xs, means = [point.x for point in points], [point.mean for point in points]
            colour, dash = COLOURS[index % len(COLOURS)], "-" if arm.endswith(FILTERS) else "--"
            marker = MARKERS[index % len(MARKERS)]
            panel.plot(xs, means, color=colour, linestyle=dash, marker=marker, markersize=4, label=f"{arm} ({lr})")
            low = [point.mean - (point.error or 0.0) for point in points]
            high = [point.mean + (point.error or 0.0) for point in points]
            panel.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.set_xlabel("rollouts sampled")
        panel.set_ylabel("held-out accuracy")
        panel.set_title("16-step chains with wrong beliefs, each arm at its best learning rate")
        panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
        drawing.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, metavar="CSV")
    parser.add_argument("--plan", choices=PLANS, default="full", help="of study.py (default: full)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .svg or .png; needs matplotlib")
    arguments = parser.parse_args()
    try:
        with open(arguments.csv, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SystemExit(f"study_report.py: {arguments.csv}: {error.strerror}") from None
    arms = {row.get("arm", "") for row in rows}
    if not rows or arms - ARMS.keys():
        raise SystemExit(f"study_report.py: {arguments.csv} is not a file of study.py")
    results = Results(rows, PLANS[arguments.plan])
    screening(results)
    finals(results)
    truth(results)
    if arguments.plot and results.finals:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
