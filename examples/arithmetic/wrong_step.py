"""How often the process rewards point at the first wrong step of a wrong response, by iteration.

The PRM is trained on outcomes alone, but on this task the wrong step is known. For each wrong response, the line with
the lowest summed reward is compared with the first wrong line. Chance is one over its number of lines. Early lines are
more often the first wrong one than late ones, so the best guess that always names the same line is listed too.
Reads RUN/ITERATION/STAGE/*.parquet and writes RUN/wrong_step.csv.

Example:
    python examples/arithmetic/wrong_step.py work/rloo-process-seed0
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from make_task import first_wrong_step
from rich.console import Console
from rich.table import Table

NEWLINE = 10  # tokens are bytes
COLUMNS = ("iteration", "wrong_responses", "found", "share", "standard_error", "chance", "same_line")


class Judged(NamedTuple):
    """A wrong response.

    lowest: the index of its lowest-rewarded line.
    wrong: the index of its first wrong line.
    lines: how many lines it has.
    """

    lowest: int
    wrong: int
    lines: int


def line_sums(ids: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """The summed reward of each line of a response, (T,) to (lines,); a line includes its newline.

    >>> line_sums(np.array([49, 10, 50]), np.array([1.0, 2.0, 4.0]))
    array([3., 4.])
    """
    starts = np.concatenate([[0], np.flatnonzero(ids == NEWLINE) + 1])
    return np.add.reduceat(rewards, starts[starts < len(ids)])


def judge(directory: Path) -> Iterator[Judged]:
    """The wrong responses in the shards of a directory."""
    columns = ["prompt", "response", "response_ids", "process_rewards", "verdict"]
    for path in sorted(directory.glob("*.parquet")):
        for row in pq.ParquetFile(path).read(columns=columns).to_pylist():
            wrong = first_wrong_step(row["prompt"], row["response"])
            sums = line_sums(np.array(row["response_ids"]), np.array(row["process_rewards"]))
            if row["verdict"] == "wrong" and wrong is not None and wrong < len(sums):
                yield Judged(int(sums.argmin()), wrong, len(sums))


def rows_of(run: Path, stage: str) -> list[dict[str, float]]:
    """One row per iteration, and all of them together as iteration 0."""
    rows = []
    everything: list[Judged] = []
    numbers = sorted(int(path.name) for path in run.iterdir() if path.name.isdigit() and (path / stage).is_dir())
    for iteration in numbers:
        judged = list(judge(run / str(iteration) / stage))
        everything += judged
        if judged:
            rows.append(summarise(iteration, judged))
    return [*rows, summarise(0, everything)] if everything else []


def summarise(iteration: int, judged: list[Judged]) -> dict[str, float]:
    """The share of responses whose wrong step was found, with its standard error, and that of two kinds of guesses.

    >>> summarise(1, [Judged(0, 0, 2), Judged(1, 0, 4)])["chance"]
    0.375
    """
    hits = sum(response.lowest == response.wrong for response in judged)
    share = hits / len(judged)
    return {
        "iteration": iteration,
        "wrong_responses": len(judged),
        "found": hits,
        "share": share,
        "standard_error": math.sqrt(share * (1 - share) / len(judged)),
        "chance": sum(1 / response.lines for response in judged) / len(judged),
        "same_line": Counter(response.wrong for response in judged).most_common(1)[0][1] / len(judged),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--stage", default="score-prm", help="the directory in each iteration that has process_rewards")
    arguments = parser.parse_args()
    run: Path = arguments.run
    rows = rows_of(run, arguments.stage) if run.is_dir() else []
    if not rows:
        raise SystemExit(f"wrong_step.py: {run}: no shards of {arguments.stage} with wrong responses")
    with open(run / "wrong_step.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    table = Table(title=f"{run}: the lowest-rewarded line is the first wrong one", title_justify="left")
    for heading in ("iteration", "wrong responses", "found", "share", "chance", "best same line"):
        table.add_column(heading, justify="right")
    for row in rows:
        share = f"{row['share']:.3f} ± {row['standard_error']:.3f}"
        label = str(row["iteration"]) if row["iteration"] else "all"
        table.add_row(
            label,
            str(row["wrong_responses"]),
            str(row["found"]),
            share,
            f"{row['chance']:.3f}",
            f"{row['same_line']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
