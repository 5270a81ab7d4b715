"""Curves over seeds from the runs of the Makefile: reading them, their mean and standard error, CSV, table and picture.

What compare.py and online_frozen.py share. A run is a directory ESTIMATOR-KIND-seedSEED; KIND is process (process and
outcome rewards), outcome (no process rewards) or frozen (as process, with a PRM that is no longer trained).
"""

from __future__ import annotations

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

# Okabe and Ito's blue, vermilion and green, told apart by all kinds of colour vision; marker and dash say it again.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, GRID = "#222222", "#DDDDDD"

Row = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Run:
    """A run. settings: those of the Makefile, by name. rows: one an iteration, as accuracy.py reads them."""

    estimator: str
    kind: str
    seed: int
    settings: dict[str, str]
    rows: list[Row]


class Point(NamedTuple):
    """Mean over seeds. error: its standard error, None for a single seed."""

    x: float
    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.error is None else f"{self.mean:.3f} ± {self.error:.3f}"


def read_run(directory: Path) -> Run:
    """A run's directory. Raises SystemExit where there is none."""
    match = RUN_NAME.fullmatch(directory.name)
    if match is None:
        raise SystemExit(f"{directory}: a run is named ESTIMATOR-process|outcome|frozen-seedSEED")
    rows = rows_of(directory)
    if not rows:
        raise SystemExit(f"{directory}: no run with evaluations is here")
    pairs = (directory / ".done" / "settings").read_text(encoding="utf-8").split()
    settings = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
    return Run(match["estimator"], match["kind"], int(match["seed"]), settings, rows)


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Runs that may be compared. Raises SystemExit where two differ in a setting that both have."""
    runs = [read_run(directory) for directory in directories]
    first = runs[0].settings
    for run, directory in zip(runs, directories, strict=True):
        for name in first.keys() & run.settings.keys():
            if first[name] != run.settings[name]:
                raise SystemExit(
                    f"{directory} was made with {name}={run.settings[name]}, {directories[0]} with "
                    f"{name}={first[name]}: runs are compared at equal settings"
                )
    return runs


def of(runs: Sequence[Run], estimator: str, kind: str) -> list[Run]:
    """The runs of one curve, by seed. Raises SystemExit where there is none."""
    found = sorted((run for run in runs if (run.estimator, run.kind) == (estimator, kind)), key=lambda run: run.seed)
    if not found:
        raise SystemExit(f"no run {estimator}-{kind}-seed… is among those given")
    return found


def mean_and_error(x: float, values: Sequence[float]) -> Point:
    """Mean and its standard error: the unbiased deviation over the root of how many there are.

    >>> mean_and_error(0, [0.25, 0.75])
    Point(x=0, mean=0.5, error=0.25)
    """
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Point(x, statistics.fmean(values), error)


def values_of(run: Run, quantity: str, x: str = "rollouts") -> dict[float, float]:
    """A quantity of a run by x, where it was measured."""
    found = {row[x]: row[quantity] for row in run.rows}
    return {place: value for place, value in found.items() if place is not None and value is not None}


def shared(runs: Sequence[Run], quantity: str, x: str = "rollouts") -> list[float]:
    """Every x that all the runs have been measured at."""
    return sorted(set.intersection(*(set(values_of(run, quantity, x)) for run in runs)))


def at(runs: Sequence[Run], quantity: str, places: Sequence[float], x: str = "rollouts") -> list[Point]:
    """Mean and standard error over seeds at these x."""
    measured = [values_of(run, quantity, x) for run in runs]
    return [mean_and_error(place, [values[place] for values in measured]) for place in places]


def curve(runs: Sequence[Run], quantity: str, x: str = "rollouts") -> list[Point]:
    """Mean and standard error over seeds, at every x that all the runs have been measured at."""
    return at(runs, quantity, shared(runs, quantity, x), x)


def over(runs: Sequence[Run]) -> str:
    """What the numbers of a table are."""
    seeds = len({run.seed for run in runs})
    return f"mean ± standard error over {seeds} seeds" if seeds > 1 else "a single seed"


def write_csv(path: Path, runs: Sequence[Run]) -> None:
    """All runs in long form: one row an iteration of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["estimator", "rewards", "seed", *runs[0].rows[0]])
        for run in runs:
            writer.writerows([run.estimator, run.kind, run.seed, *row.values()] for row in run.rows)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in Markdown, to be read here or pasted."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    padded = [
        [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * width + ("-:" if place else "--") for place, width in enumerate(widths)]
    print(f"\n{title}\n")
    print(f"| {' | '.join(padded[0])} |")
    print(f"|{'|'.join(rule)}|")
    for line in padded[1:]:
        print(f"| {' | '.join(line)} |")


def style() -> AbstractContextManager[None]:
    """In it, pictures are made alike; they are drawn without a display, and the same data gives the same file."""
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
    """A figure of panels, size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]


STYLES = {
    "process": (BLUE, "o", "-"),
    "outcome": (VERMILION, "s", "--"),
    "frozen": (GREEN, "^", "-."),
}


def limits(runs: Sequence[Run], quantity: str) -> tuple[float, float]:
    """An axis for a share that holds all its values, from a tenth to a tenth."""
    found = [value for run in runs for value in values_of(run, quantity).values()]
    return math.floor(10 * min(found)) / 10, math.ceil(10 * max(found)) / 10


def draw(panel: Axes, points: Sequence[Point], kind: str, label: str) -> None:
    """A curve with a band of one standard error on either side."""
    colour, marker, dash = STYLES[kind]
    xs, means = [point.x for point in points], [point.mean for point in points]
    panel.plot(xs, means, color=colour, marker=marker, linestyle=dash, linewidth=1.6, markersize=4, label=label)
    errors = [point.error or 0.0 for point in points]
    low = [mean - error for mean, error in zip(means, errors, strict=True)]
    high = [mean + error for mean, error in zip(means, errors, strict=True)]
    panel.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)


def save(figure: Figure, path: Path) -> None:
    """Writes the picture in the format that its name ends with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
