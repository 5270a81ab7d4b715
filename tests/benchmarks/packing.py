"""What packing saves: sequences end to end with their group's prompt computed once, over rows filled to one width.

    python tests/benchmarks/packing.py [--rounds 3] [--json FILE]

Each line is a kind of batch: a model's width, the samples of a group, tokens of a prompt and of a response in the mean.
Scoring is a forward pass, training a forward and backward pass, over all rows in micro-batches of 8,192 tokens. The
seconds are of this process's CPU, so that others on the machine weigh little. `auto` is what `--packing auto` chooses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measuring import Figure, check_close, in_turn, ratio, show

if TYPE_CHECKING:
    import numpy as np

BUDGET = 8192


@dataclass(frozen=True)
class Case:
    """A kind of batch: groups of `samples` responses."""

    name: str
    width: int
    groups: int
    samples: int
    prompt_tokens: int
    response_tokens: int


CASES = [
    Case("the example's: width 96, 4 samples, 14 + 44 tokens", 96, 64, 4, 14, 44),
    Case("width 384, 8 samples, 100 + 200 tokens", 384, 2, 8, 100, 200),
    Case("width 384, 8 samples, 300 + 200 tokens", 384, 1, 8, 300, 200),
    Case("width 384, 8 samples, 900 + 100 tokens", 384, 1, 8, 900, 100),
    Case("width 384, 1 sample, 100 + 200 tokens", 384, 12, 1, 100, 200),
]


def make_sequences(case: Case, words: int) -> Any:
    """Random tokens: prompts within a third of their mean, responses within a half."""
    import numpy as np

    from primecli.shards.rollouts import Sequences

    random = np.random.default_rng(0)

    def tokens(mean: int, spread: float) -> np.ndarray:
        count = random.integers(round(mean * (1 - spread)), round(mean * (1 + spread)), endpoint=True)
        return random.integers(0, words, count).astype(np.int32)

    prompts = [tokens(case.prompt_tokens, 0.33) for _ in range(case.groups)]
    rows = [prompt for prompt in prompts for _ in range(case.samples)]
    return Sequences(rows, [tokens(case.response_tokens, 0.5) for _ in rows])


def compare(case: Case, rounds: int) -> list[Figure]:
    """Packed over padded, scoring and training."""
    import torch

    from primecli.models import loading, scoring
    from primecli.models.device import Placement
    from tests.benchmarks.made import make_model

    words = 64 if case.width < 100 else 4000
    padded = Placement(torch.device("cpu"), torch.float32, "off")
    packed = replace(padded, packing="on")
    with tempfile.TemporaryDirectory() as directory:
        make_model(Path(directory), words=words, width=case.width, layers=4 if case.width < 100 else 6)
        model = loading.load_model(Path(directory), padded)
    sequences = make_sequences(case, words)
    rows = range(len(sequences.prompt_ids))

    def train(place: Placement) -> None:
        model.zero_grad()
        for batch in scoring.plan(model, place, sequences, rows, BUDGET):
            scoring.sequence_logprobs(model, place, sequences, batch).logprobs.sum().backward()  # type: ignore[no-untyped-call]

    def timed(work: Callable[[Placement], object], place: Placement) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            work(place)
            return time.process_time() - start

        return run

    def score(place: Placement) -> np.ndarray:
        return scoring.score(model, place, sequences, micro_batch_tokens=BUDGET)

    check_close(case.name, score(packed), score(padded), atol=1e-4)
    chosen = scoring.plan(model, replace(padded, packing="auto"), sequences, rows, BUDGET)
    auto = "packs" if chosen[0].packed else "pads"
    figures = []
    for what, work in (("scoring", score), ("training", train)):
        found = in_turn({"padded": timed(work, padded), "packed": timed(work, packed)}, rounds)
        value = ratio(found["packed"], found["padded"])
        text = f"{value} of {sorted(found['padded'])[rounds // 2]:.2f} s; auto {auto}"
        figures.append(Figure(f"{what}, {case.name}", value.median, text, "padded rows"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    show("Time of packed over padded", [line for case in CASES for line in compare(case, given.rounds)], given.json)


if __name__ == "__main__":
    main()
