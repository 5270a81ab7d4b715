"""What a second rank saves and gains: memory of weights, gradients and moments of a rank, and tokens per second.

The update-policy trainer on one process without ranks, and on one and two ranks with one thread each (gloo, on this
machine). Memory: how far the peak of a process rises above what it holds before the model is loaded, over loading and
two steps with micro-batches of 64 tokens, so that activations are small. Time: steps of two micro-batches of 4,096
tokens (the default is 16,384), the first step left out: a rank takes and returns the whole model for each, so that a
second rank gains less where they are small (--tokens 1024). All sides must compute the same losses.

    python tests/benchmarks/ranks.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import (  # noqa: E402
    Figure,
    check_close,
    in_turn,
    peak_mib,
    ratio,
    reset_peak,
    resident_mib,
    run_process,
    show,
)

SIDES = {"plain": 0, "one rank": 1, "two ranks": 2}
LAUNCHER = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]


def train(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """MiB above what was held before, seconds and tokens of the steps after the first, and the losses."""
    import numpy as np
    import torch

    from primecli.models import loading, scoring
    from primecli.models.device import resolve_placement
    from primecli.parallel.ranks import join
    from primecli.shards.rollouts import Sequences
    from primecli.training.options import TrainingOptions
    from primecli.training.trainer import MicroBatch, Trainer

    loading.warm_imports()
    ranks = join()
    tokens = 64 if options.memory else 128
    budget = 64 if options.memory else options.tokens
    rows = 4 if options.memory else options.batches * budget // tokens
    reset_peak()
    before = resident_mib()
    training = TrainingOptions(lr=1e-6, mini_batch=rows, micro_batch_tokens=budget, shuffle=False, packing="off")  # type: ignore[arg-type]
    trainer = Trainer(directory, resolve_placement("cpu", "float32", "off"), training, "update-policy")
    ids = np.random.default_rng(0).integers(0, options.words, (rows, tokens)).astype(np.int32)
    sequences = Sequences(list(ids[:, :1]), list(ids[:, 1:]))

    def loss(batch: scoring.Batch) -> torch.Tensor:
        return -scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch).logprobs.sum()

    trainer.preflight(sequences, [list(range(rows))], loss)
    started = time.monotonic()
    for step in range(options.steps):
        if step == 1:
            started = time.monotonic()
        trainer.take_step(
            sequences, list(range(rows)), lambda batch: MicroBatch(loss(batch) / (rows * (tokens - 1)), {}), rows
        )
    seconds = time.monotonic() - started
    losses = [step["loss"] for step in trainer.history]
    found = {"mib": peak_mib() - before, "rate": rows * tokens * (options.steps - 1) / seconds, "losses": losses}
    if ranks is not None:
        found["mib"] = max(ranks.gather(found["mib"]))
    return found


def main() -> None:
    """Measures all sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=8192)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096, help="of a micro-batch, where time is measured")
    parser.add_argument("--batches", type=int, default=2, help="micro-batches in a mini-batch")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        found = train(options.directory, options)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return
    shapes = ("words", "width", "layers", "tokens", "batches", "steps")
    given = [word for name in shapes for word in (f"--{name}", str(getattr(options, name)))]
    with tempfile.TemporaryDirectory() as name:
        make = (
            "import sys; from pathlib import Path; from tests.benchmarks.made import make_model; "
            f"make_model(Path(sys.argv[1]), words={options.words}, width={options.width}, layers={options.layers})"
        )
        run_process([sys.executable, "-c", make, name])
        size = (Path(name) / "model.safetensors").stat().st_size / 4

        def side(world: int, *words: str) -> Any:
            script = [__file__, *given, "--directory", name, *words]
            launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(world), *LAUNCHER] if world else []
            return run_process([sys.executable, *launcher, *script]).said

        times = in_turn({kind: partial(side, world) for kind, world in SIDES.items()}, options.rounds)
        memory = in_turn({kind: partial(side, world, "--memory") for kind, world in SIDES.items()}, 1)
    for found in (times, memory):
        for kind in SIDES:
            check_close("losses", found[kind][0]["losses"], found["plain"][0]["losses"], atol=1e-5)
    figures = []
    peaks = {kind: memory[kind][0]["mib"] for kind in SIDES}
    for kind, goal in (("one rank", None), ("two ranks", "<= 0.60")):
        value = peaks[kind] / peaks["plain"]
        text = f"{value:.2f}  {peaks[kind]:,.0f} MiB"
        figures.append(Figure(f"memory of a rank, {kind}", value, text, f"plain {peaks['plain']:,.0f} MiB", goal))
    rates = {kind: [found["rate"] for found in times[kind]] for kind in SIDES}
    for kind, baseline, goal in (("one rank", "plain", None), ("two ranks", "one rank", ">= 1.60")):
        value = ratio(rates[kind], rates[baseline])
        text = f"{value}  {statistics.median(rates[kind]):,.0f} tokens/s"
        beside = f"{baseline} {statistics.median(rates[baseline]):,.0f} tokens/s"
        figures.append(Figure(f"tokens a second, {kind}", value.median, text, beside, goal))
    show(
        f"update-policy, Qwen2 of {size / 1e6:.0f}M parameters, float32, CPU, one thread a rank", figures, options.json
    )


if __name__ == "__main__":
    main()
