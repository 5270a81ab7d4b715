"""Curves over seeds from the runs of the Makefile: mean and standard error, as CSV, table and picture.

compare.py and online_frozen.py share this module. A run is a directory ESTIMATOR-KIND-seedSEED; KIND is process
(process and outcome rewards), outcome (no process rewards) or frozen (like process, but the PRM is no longer trained).
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from accuracy import rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_NAME = re.compile(r"(?P<estimator>[a-z-]+)-(?P<kind>process|outcome|frozen)-seed(?P<seed>\d+)")
NAMES = {"rloo": "RLOO", "reinforce": "REINFORCE", "grpo": "GRPO", "dr-grpo": "Dr. GRPO", "gae": "PPO"}

# Okabe and Ito's blue, vermilion and green, distinct in every kind of colour vision; markers and dashes differ too.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, GRID = "#222222", "#DDDDDD"

Row = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Run:
    """A run.

    estimator: such as rloo.
    kind: process, outcome or frozen.
    seed: its seed.
    settings: the variables of the Makefile that it was made with, by name.
    rows: one per iteration, as accuracy.py reads them.
    """

    estimator: str
    kind: str
    seed: int
    settings: dict[str, str]
    rows: list[Row]


class Point(NamedTuple):
    """A mean over seeds.

    x: where on the axis, such as the number of rollouts.
    mean: the mean.
    error: its standard error; None for a single seed.
    """

    x: float
    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.error is None else f"{self.mean:.3f} ± {self.error:.3f}"


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that compare.py and online_frozen.py share: runs, --csv and --plot."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="all runs in long form")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .svg or .png; needs matplotlib")
    return parser


def read_run(directory: Path) -> Run:
    """The run in a directory. Raises SystemExit if it holds none."""
    match = RUN_NAME.fullmatch(directory.name)
    if match is None:
        raise SystemExit(f"{directory}: a run is named ESTIMATOR-process|outcome|frozen-seedSEED")
    rows = rows_of(directory)
    if not rows:
        raise SystemExit(f"{directory}: no run with evaluations")
    pairs = (directory / ".done" / "settings").read_text(encoding="utf-8").split()
    settings = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
    return Run(match["estimator"], match["kind"], int(match["seed"]), settings, rows)


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Runs to compare. Raises SystemExit if two differ in a setting that both have."""
    runs = [read_run(directory) for directory in directories]
    first = runs[0].settings
    for run, directory in zip(runs, directories, strict=True):
        for name in first.keys() & run.settings.keys():
            if first[name] != run.settings[name]:
                raise SystemExit(
                    f"{directory} was made with {name}={run.settings[name]}, {directories[0]} with "
                    f"{name}={first[name]}: compare runs with equal settings"
                )
    return runs


def of(runs: Sequence[Run], estimator: str, kind: str) -> list[Run]:
    """The runs of one curve, sorted by seed. Raises SystemExit if there are none."""
    selected = sorted((run for run in runs if (run.estimator, run.kind) == (estimator, kind)), key=lambda run: run.seed)
    if not selected:
        raise SystemExit(f"no run {estimator}-{kind}-seed… is among those given")
    return selected


def mean_and_error(x: float, values: Sequence[float]) -> Point:
    """The mean and its standard error: the unbiased standard deviation over the square root of the count.

    >>> mean_and_error(0, [0.25, 0.75])
    Point(x=0, mean=0.5, error=0.25)
    """
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Point(x, statistics.fmean(values), error)


def values_of(run: Run, quantity: str, x: str = "rollouts") -> dict[float, float]:
    """A quantity of a run by x, wherever it was measured."""
    pairs = ((row[x], row[quantity]) for row in run.rows)
    return {position: value for position, value in pairs if position is not None and value is not None}


def shared(runs: Sequence[Run], quantity: str, x: str = "rollouts") -> list[float]:
    """Every x at which all of the runs were measured."""
    return sorted(set.intersection(*(set(values_of(run, quantity, x)) for run in runs)))


def at(runs: Sequence[Run], quantity: str, xs: Sequence[float], x: str = "rollouts") -> list[Point]:
    """Mean and standard error over seeds at these x."""
    measured = [values_of(run, quantity, x) for run in runs]
    return [mean_and_error(position, [values[position] for values in measured]) for position in xs]


def curve(runs: Sequence[Run], quantity: str, x: str = "rollouts") -> list[Point]:
    """Mean and standard error over seeds, at every x at which all of the runs were measured."""
    return at(runs, quantity, shared(runs, quantity, x), x)


def over(runs: Sequence[Run]) -> str:
    """A description of the numbers in a table."""
    seeds = len({run.seed for run in runs})
    return f"mean ± standard error over {seeds} seeds" if seeds > 1 else "a single seed"


def write_csv(path: Path, runs: Sequence[Run]) -> None:
    """Writes all runs in long form: one row per iteration of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["estimator", "rewards", "seed", *runs[0].rows[0]])
        for run in runs:
            writer.writerows([run.estimator, run.kind, run.seed, *row.values()] for row in run.rows)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table in Markdown, legible as it is."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [
        [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * width + ("-:" if column else "--") for column, width in enumerate(widths)]
    print(f"\n{title}\n")
    print(f"| {' | '.join(padded[0])} |")
    print(f"|{'|'.join(rule)}|")
    for line in padded[1:]:
        print(f"| {' | '.join(line)} |")


def style() -> AbstractContextManager[None]:
    """A context in which pictures share a style, and in which the same data gives the same file."""
    from matplotlib import rc_context

    return rc_context(
        {
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "text.color": INK,
            "grid.color": GRID,
            "legend.frameon": False,
            "svg.hashsalt": "primecli",
        }
    )


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with rows × columns panels. size: in inches. It needs no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]


STYLES = {
    "process": (BLUE, "o", "-"),
    "outcome": (VERMILION, "s", "--"),
    "frozen": (GREEN, "^", "-."),
}


def limits(runs: Sequence[Run], quantity: str) -> tuple[float, float]:
    """The limits of an axis for a share, rounded to tenths so that all values are within."""
    measured = [value for run in runs for value in values_of(run, quantity).values()]
    return math.floor(10 * min(measured)) / 10, math.ceil(10 * max(measured)) / 10


def draw(panel: Axes, points: Sequence[Point], kind: str, label: str) -> None:
    """Draws a curve with a band of one standard error on either side."""
    colour, marker, dash = STYLES[kind]
    xs, means = [point.x for point in points], [point.mean for point in points]
    panel.plot(xs, means, color=colour, marker=marker, linestyle=dash, linewidth=1.6, markersize=4, label=label)
    errors = [point.error or 0.0 for point in points]
    low = [mean - error for mean, error in zip(means, errors, strict=True)]
    high = [mean + error for mean, error in zip(means, errors, strict=True)]
    panel.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)


def save(figure: Figure, path: Path) -> None:
    """Writes the picture, in the format of its file name's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
