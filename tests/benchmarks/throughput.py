"""Tokens per second of score-prm and update-policy beside a bare loop over the same models and rollouts.

The bare loops are plain torch and transformers, of the kind that one would write for this one purpose: all logits,
log_softmax, gather; the loss, backward, clip, AdamW. They have the stages' micro-batches, padded, and mini-batches, and
nothing else of primecli. What they compute is held against what the stage wrote; where it differs, the benchmark fails.
The stage is measured on the same padded batches (`--packing off`), and as it comes (`packed`: --packing auto).

Two times are measured. `work` is from the first shard to what is written, imports of torch and transformers
excluded: both sides read the shard and load the models; score-prm writes a shard, and both updates write weights and
moments. `process` is the whole process. Peak memory is each side's own.

    python tests/benchmarks/throughput.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import (  # noqa: E402
    Cost,
    Figure,
    check_close,
    in_turn,
    peak_mib,
    ratio,
    run_process,
    show,
)

if TYPE_CHECKING:
    from torch import Tensor

BETA, LR, CLIP, GRAD_CLIP, WEIGHT_DECAY = 0.05, 1e-6, 0.2, 1.0, 0.01
ATOL = 2e-4  # nats; float32 sums in another order
RTOL = 2e-3  # of a loss or a gradient's norm


def make(directory: Path, options: argparse.Namespace) -> None:
    """Two models and a shard of rollouts of the first of them."""
    from tests.benchmarks.made import make_model, write_rollouts

    shape = {"words": options.words, "width": options.width, "layers": options.layers}
    fingerprint = make_model(directory / "policy", **shape)
    make_model(directory / "ref", **shape, seed=1)
    (directory / "in").mkdir()
    write_rollouts(
        directory / "in" / "rollouts-00000-of-00001.parquet",
        options.rows,
        options.tokens,
        words=options.words,
        prompt_tokens=options.prompt_tokens,
        spread=0.33,
        fingerprint=fingerprint,
        stages=("generate", "verify", "compute-advantages"),
    )


# --- the stages


def stage_score(directory: Path, options: argparse.Namespace, packing: str = "off") -> None:
    """score-prm as a command."""
    words = f"score-prm --prm policy --ref ref --beta {BETA} --out score-prm in"
    _command(words, directory, options, packing)


def stage_update(directory: Path, options: argparse.Namespace, packing: str = "off") -> None:
    """update-policy as a command, without the forward passes beside its steps: the bare loop has none either."""
    words = f"update-policy --policy policy --checkpoint updated --lr {LR} --mini-batch {options.mini_batch}"
    _command(f"{words} --no-shuffle --measure 0 --old-logprobs rollout in", directory, options, packing)


def _command(words: str, directory: Path, options: argparse.Namespace, packing: str) -> None:
    from primecli import cli

    os.chdir(directory)
    budget = ["--micro-batch-tokens", str(options.micro_batch_tokens), "--packing", packing]
    code = cli.run([*words.split(), *budget, "--quiet", "--force"])
    if code:
        raise SystemExit(code)


# --- the bare loops


def read(directory: Path) -> dict[str, list[Any]]:
    """The columns of the shard as Python lists."""
    import pyarrow.parquet as pq

    columns = ["prompt_ids", "response_ids", "rollout_logprobs", "advantages"]
    table = pq.read_table(next((directory / "in").glob("*.parquet")), columns=columns)
    return {name: table[name].to_pylist() for name in columns}


def batches(data: dict[str, list[Any]], rows: list[int], micro_batch_tokens: int) -> Iterator[list[int]]:
    """The rows in micro-batches, as primecli plans them: its only part in the bare loops."""
    from primecli.core.ragged import micro_batches

    lengths = [len(data["prompt_ids"][row]) + len(data["response_ids"][row]) for row in rows]
    for chosen in micro_batches(lengths, micro_batch_tokens):
        yield [rows[index] for index in chosen]


def padded(data: dict[str, list[Any]], rows: list[int]) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) filled at the right, and where they are of a response (B, T)."""
    import torch

    width = max(len(data["prompt_ids"][row]) + len(data["response_ids"][row]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        prompt, response = data["prompt_ids"][row], data["response_ids"][row]
        ids[place, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[place, len(prompt) : len(prompt) + len(response)] = True
    return ids, mask


def logprobs_of(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(N,) log-probability of each response token, by all logits of the batch."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    found: Tensor = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return found[mask[:, 1:]]


def load(directory: Path) -> Any:
    """A model in float32, dropout off."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    return model.eval()


def bare_score(directory: Path, options: argparse.Namespace) -> None:
    """Log-probabilities under both models, written as one array each, rows one after another."""
    import numpy as np
    import torch

    data = read(directory)
    found = {}
    for role in ("policy", "ref"):
        model = load(directory / role)
        by_row: list[np.ndarray] = [np.zeros(0)] * options.rows
        with torch.inference_mode():
            for rows in batches(data, [*range(options.rows)], options.micro_batch_tokens):
                values = logprobs_of(model, *padded(data, rows))
                pieces = torch.split(values, [len(data["response_ids"][row]) for row in rows])
                for row, piece in zip(rows, pieces, strict=True):
                    by_row[row] = piece.numpy()
        found[role] = np.concatenate(by_row)
    np.savez(directory / "bare-score.npz", policy=found["policy"], ref=found["ref"])


def bare_update(directory: Path, options: argparse.Namespace) -> None:
    """PPO's clipped loss, token mean, a step a mini-batch; weights, moments and the steps' losses are written."""
    import torch

    data = read(directory)
    model = load(directory / "policy")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    steps = []
    for start in range(0, options.rows, options.mini_batch):
        mini_batch = list(range(start, min(start + options.mini_batch, options.rows)))
        tokens = sum(len(data["response_ids"][row]) for row in mini_batch)
        optimizer.zero_grad()
        total = 0.0
        for rows in batches(data, mini_batch, options.micro_batch_tokens):
            logprobs = logprobs_of(model, *padded(data, rows))
            old, advantages = (
                torch.tensor([value for row in rows for value in data[name][row]])
                for name in ("rollout_logprobs", "advantages")
            )
            ratios = (logprobs - old).exp()
            loss = -torch.minimum(ratios * advantages, ratios.clamp(1 - CLIP, 1 + CLIP) * advantages).sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP))
        optimizer.step()
        steps.append({"loss": total, "grad_norm": norm})
    model.save_pretrained(directory / "bare-updated")
    torch.save(optimizer.state_dict(), directory / "bare-updated" / "optimizer.pt")
    (directory / "bare-steps.json").write_text(json.dumps(steps))


SIDES: dict[str, dict[str, Callable[..., None]]] = {
    "score-prm": {"bare": bare_score, "stage": stage_score, "packed": partial(stage_score, packing="auto")},
    "update-policy": {"bare": bare_update, "stage": stage_update, "packed": partial(stage_update, packing="auto")},
}


def check_score(directory: Path) -> None:
    """SystemExit unless the stage's log-probabilities are the bare loop's."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(next((directory / "score-prm").glob("*.parquet")))
    bare = np.load(directory / "bare-score.npz")
    for role, column in (("policy", "prm_logprobs"), ("ref", "ref_logprobs")):
        check_close(f"score-prm's {column}", table[column].combine_chunks().flatten().to_numpy(), bare[role], atol=ATOL)


def check_update(directory: Path) -> None:
    """SystemExit unless each step's loss and gradient norm are the bare loop's."""
    bare = json.loads((directory / "bare-steps.json").read_text())
    lines = (directory / "updated" / "trainer" / "steps.jsonl").read_text().splitlines()
    ours = [json.loads(line) for line in lines]
    for name in ("loss", "grad_norm"):
        expected, found = [step[name] for step in bare], [step[name] for step in ours]
        check_close(f"update-policy's {name} by step", found, expected, atol=1e-6, rtol=RTOL)


CHECKS = {"score-prm": check_score, "update-policy": check_update}


# --- measuring


def one_side(directory: Path, options: argparse.Namespace) -> None:
    """Runs a side in this process and prints its seconds of work and its peak memory."""
    from primecli.models.loading import warm_imports

    warm_imports()
    from transformers import Qwen2ForCausalLM  # noqa: F401

    stage, side = options.side
    start = time.perf_counter()
    SIDES[stage][side](directory, options)
    print()
    print(json.dumps({"work": time.perf_counter() - start, "peak_mib": peak_mib()}))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32, help="rollouts")
    parser.add_argument("--tokens", type=int, default=200, help="response tokens in the mean, ±33 %%")
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--words", type=int, default=8192)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--mini-batch", type=int, default=16)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stage", choices=list(SIDES), action="append", help="only this one")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measures both sides of both stages in turn and prints the table."""
    options = parse_arguments()
    if options.side:
        one_side(options.directory, options)
        return
    figures = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make(directory, options)
        for stage in options.stage or SIDES:
            figures += measure(stage, directory, options)
    title = (
        f"{options.rows} rollouts of {options.prompt_tokens} + {options.tokens} tokens, Qwen2 of {options.layers} "
        f"layers × {options.width} and {options.words} words, threads: {options.threads}, "
        f"median of {options.rounds} rounds"
    )
    show(title, figures, options.json)


def measure(stage: str, directory: Path, options: argparse.Namespace) -> list[Figure]:
    """The figures of a stage, once it is checked that both sides compute the same."""
    arguments = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(options).items()
        if name not in ("side", "directory", "json", "stage")
    ]

    def side(which: str) -> Callable[[], Cost]:
        command = [sys.executable, __file__, *arguments, "--directory", str(directory), "--side", stage, which]

        def run() -> Cost:
            cost = run_process(command, threads=options.threads)
            if which != "bare":
                CHECKS[stage](directory)
            return cost

        return run

    found = in_turn({which: side(which) for which in SIDES[stage]}, options.rounds)
    return [*speeds(stage, "stage", found, options), *speeds(stage, "packed", found, options)]


def speeds(stage: str, which: str, found: dict[str, list[Cost]], options: argparse.Namespace) -> list[Figure]:
    """Tokens a second and memory of one way of the stage over the bare loop's."""
    what = stage if which == "stage" else f"{stage}, {which}"
    tokens = options.rows * (options.tokens + options.prompt_tokens)
    figures = []
    for label in ("work", "process"):
        bare, ours = (
            [cost.said["work"] if label == "work" else cost.seconds for cost in found[side]] for side in ("bare", which)
        )
        speed = ratio(bare, ours)
        figures.append(
            Figure(
                f"{what}, {label}",
                speed.median,
                f"{speed}  {tokens / statistics.median(ours):,.0f} tokens/s",
                f"bare loop {tokens / statistics.median(bare):,.0f} tokens/s",
                ">= 0.85" if label == "work" and which == "stage" else None,
            )
        )
    bare, ours = ([cost.mebibytes for cost in found[side]] for side in ("bare", which))
    memory = ratio(ours, bare)
    text = f"{memory}  {statistics.median(ours):,.0f} MiB"
    return [*figures, Figure(f"{what}, memory", memory.median, text, f"bare loop {statistics.median(bare):,.0f} MiB")]


if __name__ == "__main__":
    main()
