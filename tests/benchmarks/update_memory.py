"""What an update's options save and cost: recomputed activations, and AdamW in one fused kernel.

Activations: how far a process's peak rises in a forward and backward pass of 4 × 1,024 tokens, weights and gradients
left out, with --gradient-checkpointing and without, each in a process of its own; and the CPU time of that pass. Both
must give the same gradients.

AdamW: the CPU time of a step of the update's optimizer over matrices of so many numbers in all, beside torch's plain
one, in the same process in turn. Both must give the same weights.

    python tests/benchmarks/update_memory.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
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

KINDS = ("kept", "recomputed")
LR, WEIGHT_DECAY = 1e-3, 0.01


def one_pass(directory: Path, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """MiB above weights and gradients, CPU seconds and the norms of some gradients."""
    import numpy as np
    import torch

    from primecli.models.device import resolve_placement
    from primecli.models.loading import load_model
    from primecli.models.scoring import Batch, sequence_logprobs
    from primecli.shards.rollouts import Sequences
    from primecli.training.memory import recompute_activations

    place = resolve_placement("cpu", "float32", "off")
    model = load_model(directory, place)
    if kind == "recomputed":
        recompute_activations(model)
    ids = np.random.default_rng(0).integers(0, options.words, (options.rows, options.tokens)).astype(np.int32)
    sequences = Sequences(list(ids[:, :1]), list(ids[:, 1:]))

    def run(rows: list[int]) -> None:
        torch.autograd.backward(sequence_logprobs(model, place, sequences, Batch(rows)).logprobs.sum())

    run([0])  # gradients are there from here on, and what torch sets up once
    model.zero_grad(set_to_none=False)
    reset_peak()
    before = resident_mib()
    start = time.process_time()
    run(list(range(options.rows)))
    seconds = time.process_time() - start
    norms = [float(parameter.grad.norm()) for parameter in model.parameters()]
    return {"mib": peak_mib() - before, "cpu": seconds, "norms": norms}


def optimizers(options: argparse.Namespace) -> Figure:
    """The fused step's time over the plain one's."""
    import torch

    from primecli.training.optimizer import BETAS, AdamW

    torch.manual_seed(0)
    start = [torch.randn(1024, 1024) for _ in range(max(1, options.numbers // 1024**2))]
    ours = [torch.nn.Parameter(values.clone()) for values in start]
    plain = [torch.nn.Parameter(values.clone()) for values in start]
    for one, other in zip(ours, plain, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    fused = AdamW({str(number): one for number, one in enumerate(ours)}, weight_decay=WEIGHT_DECAY)
    torch_plain = torch.optim.AdamW(plain, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=False)

    def timed_fused() -> float:
        begin = time.process_time()
        fused.step(LR)
        return time.process_time() - begin

    def timed_plain() -> float:
        begin = time.process_time()
        torch_plain.step()
        return time.process_time() - begin

    found = in_turn({"fused": timed_fused, "plain": timed_plain}, 2 + options.rounds)
    check_close("the optimizers' weights", ours[0].detach(), plain[0].detach(), atol=1e-6)
    fused_seconds, plain_seconds = found["fused"][2:], found["plain"][2:]  # memory is touched first in the first ones
    value = ratio(fused_seconds, plain_seconds)
    text = f"{value}  {statistics.median(fused_seconds):.3f} s"
    baseline = f"torch's AdamW {statistics.median(plain_seconds):.3f} s"
    return Figure(f"AdamW over {len(start) * 1024**2 / 1e6:.0f}M numbers, time", value.median, text, baseline)


def main() -> None:
    """Measures both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--words", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--numbers", type=int, default=100_000_000, help="that AdamW steps over")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one_pass(options.directory, options.side, options)))
        return
    given = [word for word in sys.argv[1:] if not word.startswith("--json")]
    with tempfile.TemporaryDirectory() as name:
        make = (
            "import sys; from pathlib import Path; from tests.benchmarks.made import make_model; "
            f"make_model(Path(sys.argv[1]), words={options.words}, width={options.width}, layers={options.layers})"
        )
        run_process([sys.executable, "-c", make, name])
        command = [sys.executable, __file__, *given, "--directory", name, "--side"]
        sides = {kind: lambda kind=kind: run_process([*command, kind]).said for kind in KINDS}
        found = in_turn(sides, options.rounds)
    kept, again = found["kept"], found["recomputed"]
    check_close("gradients", again[0]["norms"], kept[0]["norms"], atol=1e-3, rtol=1e-5)
    figures = []
    for what, key, unit in (("memory", "mib", "MiB"), ("time", "cpu", "s")):
        value = ratio([each[key] for each in again], [each[key] for each in kept])
        middle = [statistics.median(each[key] for each in side) for side in (again, kept)]
        text = f"{value}  {middle[0]:,.1f} {unit}"
        figures.append(
            Figure(f"--gradient-checkpointing, {what}", value.median, text, f"without {middle[1]:,.1f} {unit}")
        )
    title = (
        f"{options.rows} × {options.tokens} tokens, Qwen2 of {options.layers} layers × {options.width}, float32, CPU"
    )
    show(title, [*figures, optimizers(options)], options.json)


if __name__ == "__main__":
    main()
