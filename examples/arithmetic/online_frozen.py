"""Does a PRM stay accurate when it is frozen? Pair accuracy on each iteration's fresh rollouts, online against frozen.

Reads runs of the Makefile. Both PRMs are measured in the same way: by update-prm, on the rollouts that pass the filter,
before it trains on them (pair_accuracy_before); for a frozen PRM it runs with learning rate 0. A pair is a correct and
a wrong response to the same prompt, and 0.5 is chance. Prints mean and standard error over seeds, writes CSV and a
picture.

Example:
    make -C examples/arithmetic -j2 online-frozen
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import curves
from curves import Point, Run

LABELS = {"process": "PRM updated online", "frozen": "PRM frozen"}
PAIRS, ACCURACY = "prm_pair_accuracy_before", "heldout_accuracy"
CHANCE = 0.5


def by_iteration(runs: Sequence[Run], quantity: str) -> dict[str, list[Point]]:
    """The curves of a quantity, online and frozen."""
    (estimator,) = {run.estimator for run in runs}
    return {kind: curves.curve(curves.of(runs, estimator, kind), quantity, "iteration") for kind in LABELS}


def table_rows(runs: Sequence[Run]) -> Iterator[list[str]]:
    """One row per iteration: pair accuracies, and held-out accuracies where they were measured."""
    columns = [points for quantity in (PAIRS, ACCURACY) for points in by_iteration(runs, quantity).values()]
    cells = [{point.x: str(point) for point in points} for points in columns]
    for iteration in sorted(set().union(*cells)):
        yield [f"{iteration:.0f}", *(column.get(iteration, "") for column in cells)]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Pair accuracy on the left, held-out accuracy of the policy on the right."""
    from matplotlib.ticker import MaxNLocator

    figure, panels = curves.new_figure(1, 2, (7.2, 3.1))
    for panel, quantity in zip(panels, (PAIRS, ACCURACY), strict=True):
        for kind, points in by_iteration(runs, quantity).items():
            curves.draw(panel, points, kind, LABELS[kind])
        panel.set_xlabel("iteration")
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    pairs, accuracy = panels
    pairs.axhline(CHANCE, color=curves.INK, linewidth=0.8, linestyle=":")
    pairs.annotate(
        "chance", (1, CHANCE), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
    )
    pairs.set_ylim(min(0.45, curves.limits(runs, PAIRS)[0]), 1.02)
    pairs.set_title("pair accuracy on fresh rollouts")
    accuracy.set_ylim(curves.limits(runs, ACCURACY))
    accuracy.set_title("held-out accuracy of the policy")
    handles, labels = pairs.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, title=curves.over(runs))
    curves.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = curves.argument_parser(__doc__)
    options = parser.parse_args(arguments)
    runs = curves.read_runs(options.runs)
    if len({run.estimator for run in runs}) > 1:
        parser.error("give the runs of one estimator")
    curves.write_csv(options.csv, runs)
    curves.print_table(
        f"pair accuracy on fresh rollouts and held-out accuracy, {curves.over(runs)}",
        ["iteration", "pairs, online", "pairs, frozen", "held-out, online", "held-out, frozen"],
        table_rows(runs),
    )
    print(f"all runs: {options.csv}")
    if options.plot:
        with curves.style():
            draw(runs, options.plot)
        print(f"picture: {options.plot}")


if __name__ == "__main__":
    main()
