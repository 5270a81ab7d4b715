"""Fast: model FLOP utilization and peak memory of scoring and of updates, against a bare loop, and where time goes.

Utilization is the model's FLOPs (`models.forward_flops`, three times that in training) over those that the card does
in that time in a large product of matrices of bfloat16, measured in the same run; and over its maker's figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from primecli.errors import PrimecliError
from primecli.models import scoring
from primecli.models.compiled import compile_layers
from primecli.models.device import Placement
from primecli.parallel.sharding import layers
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts
from primecli.training import memory, policy, prm
from primecli.training.options import TrainingOptions
from primecli.training.policy_options import PolicyOptions
from primecli.training.prm_objective import PrmObjective
from primecli.training.trainer import Trainer, select_rows
from tests.gpu.context import Context
from tests.gpu.models import forward_flops, make_config, make_model, make_rollouts, read_rollouts, write_model
from tests.gpu.timing import data_sheet, largest_kernels, matmul_rate, peak_gib, reserved_gib, reset_memory, seconds_of

PROMPT_TOKENS = 128
RESPONSE_TOKENS = (512, 3072)
ROWS = 48
MICRO_BATCH_TOKENS = 16384
HEAD_TOKENS = 2048  # whose logits the bare loop makes at a time
GOALS = {"score-prm": 0.55, "update-prm": 0.45, "update-policy": 0.45}


class Bench:
    """A model, rollouts, and the card's rate."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.report = context.report
        self.device = context.device
        self.config = make_config("1.5B", tiny=context.tiny)
        self.directory = context.in_memory / "model"
        self.model = make_model(self.config, self.device, torch.bfloat16)
        write_model(self.model, self.directory)
        prompt_tokens, tokens, rows = (PROMPT_TOKENS, RESPONSE_TOKENS, ROWS) if not context.tiny else (4, (4, 12), 8)
        shard = make_rollouts(context.work / "made", rows, tokens, prompt_tokens, self.config.vocab_size)
        self.rollouts = read_rollouts(shard)
        self.budget = 64 if context.tiny else MICRO_BATCH_TOKENS
        self.placement = Placement(self.device, torch.bfloat16, "off")
        self.peak = matmul_rate(self.device, tiny=context.tiny)
        self.report.figure("a product of 8192 x 8192 matrices", self.peak / 1e12, "TFLOP/s")
        self.sheet = data_sheet(torch.cuda.get_device_name(self.device)) if context.gpu else None

    def flops(self, rows: Sequence[int]) -> float:
        """Of a forward pass over some rollouts."""
        prompts = [len(self.rollouts.prompt_ids[row]) for row in rows]
        return forward_flops(self.config, prompts, self.rollouts.response_lengths[list(rows)].tolist())

    def measure(self, name: str, work: Callable[[], object], flops: float, rows: Sequence[int]) -> float:
        """Runs the work and reports it; its FLOP/s. A RuntimeError or PrimecliError passes through."""
        reset_memory(self.device)
        seconds = seconds_of(work, self.device)
        rate = flops / seconds
        tokens = sum(len(self.rollouts.prompt_ids[row]) for row in rows)
        tokens += int(self.rollouts.response_lengths[list(rows)].sum())
        self.report.figure(f"{name}: utilization", rate / self.peak, "of the matmul rate", "the product in this run")
        if self.sheet is not None:
            goal = next((f"; goal {goal:.0%}" for stage, goal in GOALS.items() if name.startswith(stage)), "")
            baseline = f"{self.sheet / 1e12:.0f} TFLOP/s by its maker{goal}"
            self.report.figure(f"{name}: utilization of the data sheet's", rate / self.sheet, "of its rate", baseline)
        self.report.figure(f"{name}: tokens", tokens / seconds, "tokens/s")
        self.report.figure(f"{name}: peak memory", peak_gib(self.device), "GiB")
        self.report.figure(f"{name}: peak memory of the allocator", reserved_gib(self.device), "GiB")
        return rate

    def kernels(self, name: str, work: Callable[[], object]) -> None:
        """Reports where the work's time goes."""
        try:
            for kernel, share in largest_kernels(work, self.device):
                self.report.figure(f"{name}: kernel {kernel[:100]}", share, "of device time")
        except RuntimeError as error:
            self.report.skip(f"{name}: its kernels", f"torch's profiler failed: {str(error).splitlines()[0]}")


def run(context: Context) -> None:
    """Scoring, then updates, each after its bare loop."""
    bench = Bench(context)
    measure_scoring(bench)
    bare_update(bench)
    del bench.model
    measure_updates(bench)


def measure_scoring(bench: Bench) -> None:
    """score-prm's work: one model over all rollouts."""
    sequences = bench.rollouts.sequences()
    every = range(len(bench.rollouts))

    def score(rows: Sequence[int]) -> np.ndarray:
        some = select_rows(sequences, rows)
        return scoring.score(bench.model, bench.placement, some, micro_batch_tokens=bench.budget)

    def bare(rows: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return torch.cat([bare_logprobs(bench, batch) for batch in batches(bench, rows)])

    few = list(every)[:8]
    score(few)
    bare(few)
    rate = bench.measure("bare scoring", lambda: bare(every), bench.flops(every), every)
    ours = bench.measure("score-prm", lambda: score(every), bench.flops(every), every)
    bench.report.figure("score-prm: speed", ours / rate, "times", "the bare loop over the same batches")
    bench.kernels("score-prm", lambda: score(few))
    with compiled(bench, bench.model):
        first = seconds_of(lambda: score(few), bench.device)
        bench.report.figure("score-prm --compile: first rows", first, "s", "compilation is most of it")
        again = bench.measure("score-prm --compile", lambda: score(every), bench.flops(every), every)
        bench.report.figure("score-prm --compile: speed", again / ours, "times", "score-prm")
        bench.kernels("score-prm --compile", lambda: score(few))


@contextlib.contextmanager
def compiled(bench: Bench, model: Any) -> Iterator[None]:
    """A model with `--compile`."""
    compile_layers(model, dataclasses.replace(bench.placement, compiled=True))
    try:
        yield
    finally:
        for layer in layers(model):
            del layer.forward  # what compiling has put before the method of its class


def batches(bench: Bench, rows: Sequence[int]) -> list[list[int]]:
    """The micro-batches that scoring and updates form of some rows."""
    sequences = bench.rollouts.sequences()
    plan = scoring.plan(None, bench.placement, sequences, list(rows), bench.budget)
    return [batch.rows for batch in plan]


def bare_logprobs(bench: Bench, rows: Sequence[int]) -> Tensor:
    """What a loop without primecli does: padded rows through the model, logits of some tokens at a time."""
    prompts = [bench.rollouts.prompt_ids[row] for row in rows]
    responses = [bench.rollouts.response_ids[row] for row in rows]
    both = [torch.from_numpy(np.concatenate(pair).astype(np.int64)) for pair in zip(prompts, responses, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(both, batch_first=True).to(bench.device)
    hidden = bench.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    states = torch.cat(
        [
            hidden[number, len(prompt) - 1 : len(prompt) + len(response) - 1]
            for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
    )
    targets = torch.from_numpy(np.concatenate(responses).astype(np.int64)).to(bench.device)

    def some(states: Tensor, targets: Tensor) -> Tensor:
        return -cross_entropy(bench.model.lm_head(states).float(), targets, reduction="none")

    pieces = zip(torch.split(states, HEAD_TOKENS), torch.split(targets, HEAD_TOKENS), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(some, piece, target, use_reentrant=False) for piece, target in pieces])
    return torch.cat([some(piece, target) for piece, target in pieces])


def bare_update(bench: Bench) -> None:
    """The same for training: bfloat16 weights, gradients and moments, a fused AdamW, no autocast."""
    optimizer = torch.optim.AdamW(bench.model.parameters(), lr=1e-6, fused=True)
    every = range(len(bench.rollouts))
    plans = batches(bench, every)

    def step(plans: Sequence[Sequence[int]]) -> None:
        for rows in plans:
            bare_logprobs(bench, rows).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    try:
        step(plans[-1:])
        bench.measure("bare update", lambda: step(plans), 3 * bench.flops(every), every)
    except torch.OutOfMemoryError as error:
        bench.report.note(f"the bare update does not fit: {str(error).splitlines()[0]}")
    bench.model.zero_grad()


def measure_updates(bench: Bench) -> None:
    """update-policy's and update-prm's work: steps over all rollouts, in the ways that fit."""
    options = TrainingOptions(
        lr=1e-6, mini_batch=max(1, len(bench.rollouts) // 2), shuffle=False, micro_batch_tokens=bench.budget
    )
    reset_memory(bench.device)
    trainer = Trainer(bench.directory, bench.placement, options, "update-policy")
    steps = {"update-policy": policy_step, "update-prm": prm_step}
    fits = {stage: try_update(bench, trainer, stage, step, "") for stage, step in steps.items()}
    if not all(fits.values()):
        trainer.options = dataclasses.replace(options, micro_batch_tokens=bench.budget // 2)
        for stage, step in steps.items():
            try_update(bench, trainer, stage, step, f", {bench.budget // 2} tokens a micro-batch")
        with compiled(bench, trainer.model):
            for stage, step in steps.items():
                try_update(bench, trainer, stage, step, f" --compile, {bench.budget // 2} tokens a micro-batch")
        trainer.options = options
    with compiled(bench, trainer.model):
        for stage, step in steps.items():
            try_update(bench, trainer, stage, step, " --compile")
    with compiled(bench, trainer.model):
        memory.recompute_activations(trainer.model)
        for stage, step in steps.items():
            try_update(bench, trainer, stage, step, " --compile --gradient-checkpointing")
    memory.recompute_activations(trainer.model)
    for stage, step in steps.items():
        try_update(bench, trainer, stage, step, " --gradient-checkpointing")


Step = Callable[[Trainer, Rollouts, list[int]], None]


def policy_step(trainer: Trainer, rollouts: Rollouts, rows: list[int]) -> None:
    """One step of the policy."""
    old = policy.OldLogprobs(rollouts.values[schema.ROLLOUT_LOGPROBS].copy(), from_first_forward=True)
    policy.take_step(trainer, rollouts, rows, old, PolicyOptions())


def prm_step(trainer: Trainer, rollouts: Rollouts, rows: list[int]) -> None:
    """One step of the PRM."""
    prm.take_step(trainer, rollouts, rows, 0.05, PrmObjective("ce"))


def try_update(bench: Bench, trainer: Trainer, stage: str, step: Step, how: str) -> bool:
    """Measures a stage's steps over all rollouts; whether they fit into memory."""
    reset_memory(bench.device)  # of what a try that did not fit left behind
    mini_batches = list(trainer.mini_batches(len(bench.rollouts)))
    every = [row for rows in mini_batches for row in rows]
    few = mini_batches[0][:4]

    def steps() -> None:
        for rows in mini_batches:
            step(trainer, bench.rollouts, rows)

    try:
        first = seconds_of(steps if "--compile" in how else lambda: step(trainer, bench.rollouts, few), bench.device)
        bench.report.figure(f"{stage}{how}: the first time", first, "s", "with what is done only once")
        bench.measure(f"{stage}{how}", steps, 3 * bench.flops(every), every)
    except PrimecliError as error:
        bench.report.note(f"{stage}{how} does not fit: {error.message}")
        trainer.optimizer.zero_grad()
        return False
    if stage == "update-policy":
        bench.kernels(f"{stage}{how}", lambda: step(trainer, bench.rollouts, few))
    return True
