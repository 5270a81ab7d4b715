"""How many rollouts, and which beta, does an implicit PRM need to find the wrong steps? Trained on outcomes alone.

PRMs are trained offline on rollouts of the SFT model, on chains of 16 steps whose slips depend on the fact, and score
others, sampled for held-out prompts. Each seed samples its own rollouts. For each recipe, over the held-out rollouts:

- pairs: the share of pairs of a right and a wrong response to a prompt whose summed rewards are in that order.
- precision: of as many steps with the lowest rewards as there are wrong steps, the share that is wrong. With rewards at
  random it is the share of wrong steps, which is listed as chance.
- energy: the share of the rewards' squares that falls on tokens that oracle.py blames: it blames no other.

Writes a row per recipe and seed to a CSV file; a rerun measures what is missing there.

Example:
    make -C examples/arithmetic prm-data
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import curves as drawing
import numpy as np
import pyarrow.parquet as pq
from credit import line_sums
from make_task import check_steps
from oracle import rewards_of

from primecli.shards import schema

SEEDS = (0, 1, 2)
BATCHES = 10  # of which a recipe takes the first ones
PROMPTS, N = 32, 4  # of a batch, as in an iteration of study.py
HELDOUT = 64  # prompts
COLUMNS = ("recipe", "seed", "rollouts", "beta", "pairs", "precision", "chance", "energy")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a PRM is trained.

    batches: of PROMPTS * N rollouts. groups: kept, those that pass the filter, or all. options: of update-prm.
    """

    name: str
    batches: int
    beta: str = "0.3"
    groups: str = "kept"
    options: str = "--lr 1e-3 --epochs 4"

    @property
    def rollouts(self) -> int:
        """How many were sampled for it."""
        return self.batches * PROMPTS * N


RECIPES = (
    *(Recipe("ce", batches, beta) for beta in ("0.05", "0.3", "1") for batches in (1, 3, 10)),
    Recipe("ce, 1 epoch", 10, options="--lr 1e-3"),
    Recipe("ce, rate 3e-4", 10, options="--lr 3e-4 --epochs 4"),
    Recipe("ce, all groups", 10, groups="all"),
    Recipe("dpo", 10, options="--lr 1e-3 --epochs 4 --loss dpo"),
    Recipe("prefix", 10, "10", options="--lr 1e-3 --epochs 4 --loss prefix --balance boundary,weight"),
)


class Quality(NamedTuple):
    """How good rewards are; see the module."""

    pairs: float
    precision: float
    chance: float
    energy: float


class Response(NamedTuple):
    """A response of T tokens and L lines.

    rewards, truth: (T,). lines: (L,) summed rewards. wrong: (L,) bool, whether a line is.
    """

    prompt: str
    is_right: bool
    rewards: np.ndarray
    truth: np.ndarray
    lines: np.ndarray
    wrong: np.ndarray


def responses_in(directory: Path) -> Iterator[Response]:
    """The responses in the shards of a directory, without those that have no verdict right or wrong."""
    columns = [schema.PROMPT, schema.RESPONSE, schema.RESPONSE_IDS, schema.PROCESS_REWARDS, schema.VERDICT]
    for path in sorted(directory.glob("*.parquet")):
        for row in pq.ParquetFile(path).read(columns=columns).to_pylist():
            if row[schema.VERDICT] not in ("correct", "wrong"):
                continue
            prompt, response = row[schema.PROMPT], row[schema.RESPONSE]
            ids, rewards = np.array(row[schema.RESPONSE_IDS]), np.array(row[schema.PROCESS_REWARDS])
            lines = line_sums(ids, rewards)
            right = np.array(check_steps(prompt, response)[: len(lines)])
            truth = np.array(rewards_of(prompt, response, len(ids)))
            yield Response(prompt, row[schema.VERDICT] == "correct", rewards, truth, lines[: len(right)], ~right)


def quality(responses: Sequence[Response]) -> Quality:
    """How good their rewards are. Raises ValueError where there is no pair, or no wrong step.

    >>> right = Response("p", True, np.array([1.0]), np.array([0.0]), np.array([1.0]), np.array([False]))
    >>> wrong = Response("p", False, np.array([-1.0, 0.5]), np.array([-1.0, 0.0]), np.array([-1.0, 0.5]),
    ...                  np.array([True, False]))
    >>> quality([right, wrong])
    Quality(pairs=1.0, precision=1.0, chance=0.3333333333333333, energy=0.4444444444444444)
    """
    sums: dict[str, tuple[list[float], list[float]]] = {}
    for each in responses:
        sums.setdefault(each.prompt, ([], []))[int(each.is_right)].append(float(each.rewards.sum()))
    orders = [fmean([high > low, high >= low]) for lows, highs in sums.values() for low in lows for high in highs]
    lines = np.concatenate([each.lines for each in responses])
    wrong = np.concatenate([each.wrong for each in responses])
    if not orders or not wrong.any():
        raise ValueError("no pair of a right and a wrong response, or no wrong step")
    lowest = np.argsort(lines, kind="stable")[: int(wrong.sum())]
    squares = np.concatenate([each.rewards for each in responses]) ** 2
    blamed = np.concatenate([each.truth for each in responses]) < 0
    energy = float(squares[blamed].sum() / squares.sum()) if squares.any() else 0.0
    return Quality(fmean(orders), float(wrong[lowest].mean()), float(wrong.mean()), energy)


class Bench:
    """The model, the task and the rollouts in a work directory."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.sft, self.task = work / "sft", work / "task"

    def sample(self, seed: int) -> None:
        """The rollouts of a seed: BATCHES batches to train on, each filtered too, and those that are scored."""
        for step in range(1, BATCHES + 1):
            out = self.rollouts(seed) / str(step)
            self._generate(
                out, self.task / "train.jsonl", f"--seed {100 + seed} --step {step} --batch-prompts {PROMPTS}"
            )
            primecli(f"filter --accuracy 0.2 0.8 {out}/verify")
        self._generate(
            self.rollouts(seed) / "heldout",
            self.task / "heldout.jsonl",
            f"--seed {200 + seed} --batch-prompts {HELDOUT}",
        )

    def rollouts(self, seed: int) -> Path:
        """Where the rollouts of a seed are."""
        return self.work / "prm-data" / f"rollouts-{seed}"

    def _generate(self, out: Path, prompts: Path, options: str) -> None:
        sampling = f"--model {self.sft} --prompts {prompts} --n {N} --engine hf --max-tokens 128 {options}"
        primecli(f"generate {sampling} --out {out}/generate")
        primecli(f"verify {out}/generate")

    def measure(self, recipe: Recipe, seed: int) -> Quality:
        """Trains a PRM by the recipe and scores with it."""
        place = self.work / "prm-data" / "prm"
        shutil.rmtree(place, ignore_errors=True)
        stage = {"kept": "filter", "all": "verify"}[recipe.groups]
        shards = " ".join(f"{self.rollouts(seed)}/{step}/{stage}" for step in range(1, recipe.batches + 1))
        models, beta = f"--ref {self.sft}", f"--beta {recipe.beta}"
        primecli(
            f"update-prm --prm {self.sft} {models} {beta} --checkpoint {place}/checkpoint --mini-batch 64 "
            f"--seed {seed} {recipe.options} {shards}"
        )
        heldout = f"{self.rollouts(seed)}/heldout/verify"
        primecli(f"score-prm --prm {place}/checkpoint {models} {beta} --out {place}/scored {heldout}")
        return quality(list(responses_in(place / "scored")))


def primecli(command: str) -> None:
    """Runs a stage. Raises CalledProcessError if it fails."""
    whole = [sys.executable, "-m", "primecli", *command.split(), "--quiet"]
    subprocess.run(whole, stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="the rows of all recipes and seeds")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where sft and task are")
    arguments = parser.parse_args()
    rows = read(arguments.csv)
    bench = Bench(arguments.work.resolve())
    try:
        for seed in SEEDS:
            missing = [recipe for recipe in RECIPES if not rows_of(rows, recipe, seed)]
            if missing:
                bench.sample(seed)
            for recipe in missing:
                found = bench.measure(recipe, seed)
                shown = {name: f"{value:.4f}" for name, value in found._asdict().items()}
                rows.append({**key(recipe), "seed": str(seed), **shown})
                write(arguments.csv, rows)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"prm_data.py: a stage failed: {error}") from None
    show(rows)


def key(recipe: Recipe) -> dict[str, str]:
    """The columns that say which recipe it is."""
    return {"recipe": recipe.name, "rollouts": str(recipe.rollouts), "beta": recipe.beta}


def rows_of(rows: Sequence[dict[str, str]], recipe: Recipe, seed: int | None = None) -> list[dict[str, str]]:
    """The rows of a recipe; of one seed, if it is given."""
    wanted = {**key(recipe), **({} if seed is None else {"seed": str(seed)})}
    return [row for row in rows if {name: row[name] for name in wanted} == wanted]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV file, none if it does not exist."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Writes the CSV file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    with open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)


def show(rows: Sequence[dict[str, str]]) -> None:
    """Prints the means over seeds, with their standard errors."""
    table = []
    for recipe in RECIPES:
        found = rows_of(rows, recipe)
        cells = [
            str(drawing.mean_and_error(recipe.rollouts, [float(row[name]) for row in found]))
            for name in ("pairs", "precision", "energy")
        ]
        table.append([recipe.name, str(recipe.rollouts), recipe.beta, *cells])
    chance = fmean(float(row["chance"]) for row in rows)
    title = f"{HELDOUT * N} held-out rollouts, {len(SEEDS)} seeds; precision by chance: {chance:.3f}"
    drawing.print_table(title, ["PRM", "rollouts", "beta", "pairs", "precision", "energy"], table)


if __name__ == "__main__":
    main()
