"""How the process rewards of wrong responses compare with the truth, by iteration.

The PRM is trained on outcomes alone, but on this task the wrong steps are known. A line is a step. For each iteration,
over all wrong responses:

- found: how often the line with the lowest summed reward is the first wrong one. Chance is one over the number of
  lines. Early lines are more often the first wrong one than late ones, so the best guess that always names the same
  line is listed too.
- correlation: of the tokens' rewards with those of oracle.py, which blames the result of each wrong step.
- after: the mean reward of right lines after the first wrong one, minus that of right lines before it, in standard
  deviations of all lines. They are as right as those before it: for the oracle it is 0.
- format: the share of the sum of absolute rewards that falls on tokens that are no results, which the prompt and the
  line before dictate; beside it the share of such tokens.

Reads RUN/ITERATION/STAGE/*.parquet and writes RUN/credit.csv.

Example:
    python examples/arithmetic/credit.py work/rloo-process-seed0
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from make_task import check_steps
from oracle import rewards_of
from rich import box
from rich.console import Console
from rich.table import Table

from primecli.shards import schema

NEWLINE = 10  # tokens are bytes
RESULT = re.compile(r"(?<==)\d+$|(?<=\\boxed\{)\d+(?=\})", re.MULTILINE)
COLUMNS = (
    "iteration",
    "wrong_responses",
    "found",
    "share",
    "standard_error",
    "chance",
    "same_line",
    "correlation",
    "after",
    "format",
    "format_tokens",
)

Row = dict[str, float | None]


class Judged(NamedTuple):
    """A wrong response of T tokens and L lines.

    rewards: (T,) its process rewards. truth: (T,) those of the oracle. is_result: (T,) bool.
    lines: (L,) summed rewards of its lines. right: (L,) bool.
    """

    rewards: np.ndarray
    truth: np.ndarray
    is_result: np.ndarray
    lines: np.ndarray
    right: np.ndarray

    @property
    def first_wrong(self) -> int:
        """The index of the first wrong line."""
        return int(self.right.argmin())


def line_sums(ids: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """The summed reward of each line of a response, (T,) to (L,); a line includes its newline.

    >>> line_sums(np.array([49, 10, 50]), np.array([1.0, 2.0, 4.0]))
    array([3., 4.])
    """
    starts = np.concatenate([[0], np.flatnonzero(ids == NEWLINE) + 1])
    return np.add.reduceat(rewards, starts[starts < len(ids)])


def results_in(response: str, length: int) -> np.ndarray:
    """Which of `length` tokens are those of a result, (T,) bool.

    >>> results_in("7+5=2\\n\\\\boxed{2}", 16).nonzero()[0]
    array([ 4, 13])
    """
    marks = np.zeros(length, dtype=bool)
    for match in RESULT.finditer(response):
        marks[match.start() : match.end()] = True
    return marks


def judge(directory: Path) -> Iterator[Judged]:
    """The wrong responses in the shards of a directory, without those whose first wrong line is missing."""
    columns = [schema.PROMPT, schema.RESPONSE, schema.RESPONSE_IDS, schema.PROCESS_REWARDS, schema.VERDICT]
    for path in sorted(directory.glob("*.parquet")):
        for row in pq.ParquetFile(path).read(columns=columns).to_pylist():
            if row[schema.VERDICT] != "wrong":
                continue
            prompt, response = row[schema.PROMPT], row[schema.RESPONSE]
            ids, rewards = np.array(row[schema.RESPONSE_IDS]), np.array(row[schema.PROCESS_REWARDS])
            lines = line_sums(ids, rewards)
            right = np.array(check_steps(prompt, response)[: len(lines)])
            if right.all():
                continue
            truth = np.array(rewards_of(prompt, response, len(ids)))
            yield Judged(rewards, truth, results_in(response, len(ids)), lines[: len(right)], right)


def rows_of(run: Path, stage: str) -> list[Row]:
    """One row per iteration, and all of them together as iteration 0."""
    rows = []
    everything: list[Judged] = []
    numbers = sorted(int(path.name) for path in run.iterdir() if path.name.isdigit() and (path / stage).is_dir())
    for iteration in numbers:
        judged = list(judge(run / str(iteration) / stage))
        everything += judged
        if judged:
            rows.append({"iteration": iteration, **summarise(judged)})
    return [*rows, {"iteration": 0, **summarise(everything)}] if everything else []


def summarise(judged: Sequence[Judged]) -> Row:
    """The measures of some responses; None where one is not defined.

    >>> marks = np.array([False, True])
    >>> response = Judged(np.array([0, -2]), np.array([0, -1]), marks, np.array([-2]), np.array([False]))
    >>> [summarise([response])[name] for name in ("share", "correlation", "after", "format")]
    [1.0, 1.0, None, 0.0]
    """
    hits = sum(int(response.lines.argmin()) == response.first_wrong for response in judged)
    share = hits / len(judged)
    rewards = np.concatenate([response.rewards for response in judged]).astype(np.float64)
    other = ~np.concatenate([response.is_result for response in judged])
    return {
        "wrong_responses": len(judged),
        "found": hits,
        "share": share,
        "standard_error": math.sqrt(share * (1 - share) / len(judged)),
        "chance": sum(1 / len(response.lines) for response in judged) / len(judged),
        "same_line": Counter(response.first_wrong for response in judged).most_common(1)[0][1] / len(judged),
        "correlation": correlation(rewards, np.concatenate([response.truth for response in judged])),
        "after": after_wrong(judged),
        "format": float(np.abs(rewards[other]).sum() / np.abs(rewards).sum()) if rewards.any() else None,
        "format_tokens": float(other.mean()),
    }


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's, of two (N,); None where one of them is constant."""
    if not first.std() or not second.std():
        return None
    return round(float(np.corrcoef(first, second)[0, 1]), 12)


def after_wrong(judged: Sequence[Judged]) -> float | None:
    """The mean of right lines after the first wrong one, minus that before it, in deviations of all lines."""
    lines = np.concatenate([response.lines for response in judged])
    sides: tuple[list[float], list[float]] = ([], [])
    for response in judged:
        for index in np.flatnonzero(response.right):
            sides[int(index > response.first_wrong)].append(response.lines[index])
    if not all(sides) or not lines.std():
        return None
    before, after = (float(np.mean(side)) for side in sides)
    return (after - before) / float(lines.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--stage", default="score-prm", help="the directory in each iteration that has process_rewards")
    arguments = parser.parse_args()
    run: Path = arguments.run
    rows = rows_of(run, arguments.stage) if run.is_dir() else []
    if not rows:
        raise SystemExit(f"credit.py: {run}: no shards of {arguments.stage} with wrong responses")
    with open(run / "credit.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    show(run, rows)


def show(run: Path, rows: Sequence[Row]) -> None:
    """Prints the table."""
    print(f"{run}: process rewards of wrong responses against the truth")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = ("share", "standard_error", "chance", "same_line", "correlation", "after", "format", "format_tokens")
    for heading in ("iter.", "wrong", "found", "±", "chance", "same", "corr.", "after", "format", "tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = ["" if row[name] is None else f"{row[name]:.3f}" for name in shown]
        table.add_row(str(row["iteration"] or "all"), str(row["wrong_responses"]), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
