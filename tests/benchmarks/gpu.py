"""Model FLOP utilisation and peak memory of score-prm's and update-policy's work on one GPU.

A Qwen2 of 1.5B's shape with random weights (28 layers × 1536, 151,936 words) and random rollouts, products in bfloat16;
for update-policy weights and moments in float32. What is timed is what the stages spend their time in: `scoring.score`
of a whole batch, and `policy.take_step`, forward, backward and AdamW, without the loading and writing of files.

Utilisation is the model's FLOPs over those that the device can do in that time. The model's are 2 for each weight of
its layers and token, 2 for each weight of its head and response token, 2 × layers × width × T² for causal attention
over T tokens, and three times that in training; what is computed twice to save memory does not count. The device's are
what its maker says for dense bfloat16 products, and, as a second baseline, a large product of matrices in this run.

    python tests/benchmarks/gpu.py                          on a GPU
    python tests/benchmarks/gpu.py --device cpu --tiny      does the script work? its figures mean nothing
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Figure, peak_mib, show  # noqa: E402

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bf16, from the makers' data sheets
SHAPE = {
    "words": 151_936, "width": 1536, "layers": 28, "intermediate_size": 8960, "num_attention_heads": 12,
    "num_key_value_heads": 2,
}  # fmt: skip
TINY = {**SHAPE, "words": 500, "width": 96, "layers": 2, "intermediate_size": 256, "num_attention_heads": 4}


def forward_flops(config: Any, prompt_lengths: list[int], response_lengths: list[int]) -> float:
    """Of a forward pass over sequences, logits for response tokens alone.

    >>> from transformers import Qwen2Config
    >>> config = Qwen2Config(hidden_size=4, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2,
    ...                      num_key_value_heads=1, vocab_size=10)
    >>> layer = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6  # q, k and v, o, gate up down
    >>> forward_flops(config, [3], [2]) == 2 * 2 * layer * 5 + 2 * 4 * 10 * 2 + 2 * 2 * 4 * 5**2
    True
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    inner = heads * head
    layer = 2 * width * inner + 2 * width * config.num_key_value_heads * head + 3 * width * config.intermediate_size
    total = 0.0
    for prompt, response in zip(prompt_lengths, response_lengths, strict=True):
        tokens = prompt + response
        total += 2 * config.num_hidden_layers * layer * tokens + 2 * width * config.vocab_size * response
        total += 2 * config.num_hidden_layers * inner * tokens**2
    return total


class Bench:
    """A model and rollouts on a device."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        from primecli.models.device import resolve_placement
        from primecli.pipeline.inputs import Inputs
        from primecli.shards.rollouts import load_rollouts
        from primecli.training.options import PolicyOptions
        from primecli.training.policy import needed_columns
        from tests.benchmarks.made import make_model, write_rollouts

        self.options = options
        self.model = directory / "model"
        shape: dict[str, Any] = TINY if options.tiny else SHAPE
        fingerprint = make_model(self.model, **shape, dtype="bfloat16")
        write_rollouts(
            directory / "rollouts-00000-of-00001.parquet",
            options.rows,
            options.tokens,
            words=shape["words"],
            prompt_tokens=options.prompt_tokens,
            spread=0.5,
            fingerprint=fingerprint,
            stages=("generate", "verify", "compute-advantages"),
        )
        self.place = resolve_placement(options.device, "bfloat16", options.packing)
        self.loss = PolicyOptions()
        shards = list(Inputs([str(directory / "rollouts-00000-of-00001.parquet")], partial=True))
        self.rollouts = load_rollouts(shards, needed_columns(self.loss), token_ids=True)

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds of the work; the GPU is waited for on both sides."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the GPU has done what was asked of it."""
        import torch

        if self.place.device.type == "cuda":
            torch.cuda.synchronize(self.place.device)

    def reset_memory(self) -> None:
        """Gives memory back and lets the peak start anew."""
        import gc

        import torch

        gc.collect()
        if self.place.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.place.device)

    def peak_gib(self) -> float:
        """Of the GPU, or of the process on a CPU."""
        import torch

        if self.place.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.place.device) / 2**30
        return peak_mib() / 1024

    def flops(self, config: Any, rows: list[int]) -> float:
        """Of a forward pass over some rollouts."""
        lengths = [len(self.rollouts.prompt_ids[row]) for row in rows]
        return forward_flops(config, lengths, self.rollouts.response_lengths[rows].tolist())

    def matmul_flops(self) -> float:
        """FLOP/s of a large product of matrices in bfloat16, the best of three."""
        import torch

        size = 256 if self.options.tiny else 8192
        matrix = torch.randn(size, size, device=self.place.device, dtype=torch.bfloat16)
        matrix @ matrix  # what is set up once
        repeats = 2 if self.options.tiny else 20

        def multiply() -> None:
            for _ in range(repeats):
                torch.mm(matrix, matrix)

        return float(2 * size**3 * repeats / min(self.timed(multiply) for _ in range(3)))

    def score(self) -> tuple[float, float, float]:
        """FLOP/s, tokens/s and GiB of scoring the batch by one model."""
        from primecli.models.loading import load_model
        from primecli.models.scoring import score

        self.reset_memory()
        model = load_model(self.model, self.place)
        sequences = self.rollouts.sequences()
        budget = self.options.micro_batch_tokens
        rows = list(range(len(self.rollouts)))
        score(model, self.place, sequences, micro_batch_tokens=budget)
        seconds = self.timed(lambda: score(model, self.place, sequences, micro_batch_tokens=budget))
        return self.flops(model.config, rows) / seconds, sum(sequences.lengths()) / seconds, self.peak_gib()

    def update(self) -> tuple[float, float, float]:
        """FLOP/s, tokens/s and GiB of the optimizer steps over the batch, after a first one."""
        from primecli.shards import schema
        from primecli.training import policy
        from primecli.training.options import TrainingOptions
        from primecli.training.trainer import Trainer

        self.reset_memory()
        given = self.options
        training = TrainingOptions(
            lr=1e-6, mini_batch=given.mini_batch, epochs=1, grad_clip=1.0, weight_decay=0.0, warmup_steps=0,
            shuffle=False, seed=0, micro_batch_tokens=given.micro_batch_tokens,
            gradient_checkpointing=given.gradient_checkpointing, offload_optimizer=given.offload_optimizer,
        )  # fmt: skip
        trainer = Trainer(self.model, self.place, training, "update-policy")
        old = policy.OldLogprobs(self.rollouts.values[schema.ROLLOUT_LOGPROBS].copy(), from_first_forward=True)
        batches = list(trainer.mini_batches(len(self.rollouts)))

        def steps() -> None:
            for rows in batches:
                policy.take_step(trainer, self.rollouts, rows, old, self.loss)

        policy.take_step(trainer, self.rollouts, batches[0], old, self.loss)
        seconds = self.timed(steps)
        every = [row for rows in batches for row in rows]
        tokens = sum(self.rollouts.sequences().lengths())
        return 3 * self.flops(trainer.model.config, every) / seconds, tokens / seconds, self.peak_gib()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of 1.5B's shape")
    parser.add_argument("--rows", type=int, default=256, help="rollouts")
    parser.add_argument("--tokens", type=int, default=1000, help="response tokens in the mean, ±50 %%")
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--mini-batch", type=int, default=128)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--packing", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--offload-optimizer", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bfloat16, where it is not a known one")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser.parse_args(arguments)


def data_sheet(name: str, given: float | None) -> float | None:
    """The device's FLOP/s as its maker has them, None where they are not known."""
    if given is not None:
        return given * 1e12
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def main() -> None:
    """Measures and prints the table."""
    options = parse_arguments()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --device cpu --tiny shows that the script works")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    peak = data_sheet(name, options.peak_tflops)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options)
        matmul = bench.matmul_flops()
        figures = []
        for stage, measure, goal in (("score-prm", bench.score, ">= 0.55"), ("update-policy", bench.update, ">= 0.45")):
            achieved, tokens, memory = measure()
            text = f"{achieved / 1e12:,.3f} TFLOP/s, {tokens:,.0f} tokens/s, {memory:.1f} GiB"
            if peak is not None:
                baseline = f"{name}, {peak / 1e12:,.0f} TFLOP/s by its data sheet"
                figures.append(Figure(stage, achieved / peak, f"{achieved / peak:.1%}  {text}", baseline, goal))
            baseline = f"a product of matrices, {matmul / 1e12:,.3f} TFLOP/s"
            figures.append(
                Figure(f"{stage}, of a product", achieved / matmul, f"{achieved / matmul:.1%}  {text}", baseline)
            )
    title = (
        f"{options.rows} rollouts of {options.prompt_tokens} + {options.tokens} tokens, Qwen2 of "
        f"{'a tiny' if options.tiny else '1.5B'} shape on {name}, {options.micro_batch_tokens:,} tokens at a time"
    )
    show(title, figures, options.json)


if __name__ == "__main__":
    main()
