"""Training, as all updates share it: mini-batches, micro-batches, the optimizer step, the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from primecli import __version__
from primecli.errors import PrimecliError
from primecli.files import Json
from primecli.models import checkpoints, loading, lora, scoring
from primecli.models.device import Placement, free_device_memory, reporting_memory, wait_for_memory
from primecli.models.identity import TRAINER_DIRECTORY
from primecli.pipeline.recipe import Recipe
from primecli.shards.rollouts import Rollouts, Sequences
from primecli.training import memory
from primecli.training.optimizer import AdamW
from primecli.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The loss and the metrics of one micro-batch.

    loss: (), to be differentiated; already divided by the denominator of the whole mini-batch.
    sums: metrics summed over the micro-batch, by name; the mini-batch adds them up.
    extremes: metrics named `…_max` or `…_min`; the mini-batch keeps the largest or the smallest.
    """

    loss: Tensor
    sums: Mapping[str, float]
    extremes: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """A model in float32 with AdamW, at the step where its checkpoint stopped.

    With LoRA only the adapters are trained (models/lora.py); call `checkpoints.check_adapters` first.

    directory: of the model or checkpoint to go on from.
    placement: the device and precision to compute with.
    stage: the update that trains, such as update-prm; moments of another update's checkpoint are not taken over.
    load: loads the model of a directory, with parameters of the given dtype.
    on_step: called with the metrics of each optimizer step right after it.
    """

    def __init__(
        self,
        directory: Path,
        placement: Placement,
        options: TrainingOptions,
        stage: str,
        load: Callable[..., Any] = loading.load_model,
        on_step: Callable[[Mapping[str, float]], None] | None = None,
    ) -> None:
        import torch

        self.directory = directory
        self.placement = placement
        self.options = options
        self.on_step = on_step
        self.state = checkpoints.read_state(directory, stage)
        self.step = self.state.step
        self.lora = options.lora()
        self.model = load(directory, placement, dtype=torch.float32)
        checkpoints.load_parameters(self.model, directory, self.state, self.lora, options.seed)
        if self.lora is not None and placement.dtype == torch.bfloat16:
            lora.hold_compactly(self.model)
        memory.accumulate_embedding_gradient(self.model)
        if options.gradient_checkpointing:
            memory.recompute_activations(self.model)
        trained = lora.trained(self.model)
        wait_for_memory(placement.device, memory.bytes_to_come(trained.values(), offload=options.offload_optimizer))
        with reporting_memory(self._remedies(0), "the optimizer's moments"):
            self.optimizer = AdamW(
                trained,
                weight_decay=options.weight_decay,
                steps=self.step,
                offload=options.offload_optimizer,
            )
        if self.state.has_moments:
            self.optimizer.load(directory / TRAINER_DIRECTORY / checkpoints.OPTIMIZER)
        self.history: list[dict[str, float]] = []

    def mini_batches(self, rows: int) -> Iterator[list[int]]:
        """Row numbers of each mini-batch, epoch by epoch; the last of an epoch may be smaller."""
        for order in self._orders(rows):
            for start in range(0, rows, self.options.mini_batch):
                yield order[start : start + self.options.mini_batch].tolist()

    def group_mini_batches(self, group_index: np.ndarray) -> Iterator[list[int]]:
        """As `mini_batches`, of whole groups: as many as come to no more than `mini_batch` rows, or a single one."""
        members = [np.flatnonzero(group_index == group).tolist() for group in range(int(group_index.max()) + 1)]
        for order in self._orders(len(members)):
            batch: list[int] = []
            for group in order.tolist():
                if batch and len(batch) + len(members[group]) > self.options.mini_batch:
                    yield batch
                    batch = []
                batch.extend(members[group])
            yield batch

    def _orders(self, number: int) -> Iterator[np.ndarray]:
        """The order of this many units in each epoch."""
        for epoch in range(self.options.epochs):
            if self.options.shuffle:
                key = [self.options.seed, self.state.step, epoch]
                yield np.random.Generator(np.random.PCG64(key)).permutation(number)
            else:
                yield np.arange(number)

    def total_steps(self, rows: int) -> int:
        """Optimizer steps that this many rows come to."""
        return self.options.epochs * math.ceil(rows / self.options.mini_batch)

    def learning_rate(self) -> float:
        """Constant, after a linear warm-up over the first `warmup_steps` steps of the whole training."""
        if self.step < self.options.warmup_steps:
            return self.options.lr * (self.step + 1) / self.options.warmup_steps
        return self.options.lr

    def preflight(
        self,
        sequences: Sequences,
        mini_batches: Iterable[list[int]],
        forward: Callable[[scoring.Batch], Tensor],
    ) -> None:
        """Tries the largest micro-batch of the whole run, where that is wanted, so that memory runs out now or never.

        `forward` gives a micro-batch's result as a scalar to be differentiated.
        Weights, moments, random numbers and metrics stay as they are. Raises PrimecliError with what to lower.
        """
        if not memory.runs_preflight(self.options, self.placement.device):
            return
        plans = [
            scoring.plan(self.model, self.placement, sequences, rows, self.options.micro_batch_tokens)
            for rows in mini_batches
        ]
        memory.try_largest_micro_batches(plans, sequences, forward, self.optimizer.parameters.values(), self._remedies)

    def _remedies(self, rows: int) -> str:
        return memory.remedies(self.options, self.placement.device, rows)

    def score_reference(self, directory: Path, sequences: Sequences, load: Callable[..., Any]) -> np.ndarray:
        """(N,) log-probabilities of the sequences under a reference model, whose memory is then given back."""
        reference = load(directory, self.placement)
        budget = self.options.micro_batch_tokens
        return scoring.score(reference, self.placement, sequences, micro_batch_tokens=budget)

    def take_step(
        self,
        sequences: Sequences,
        rows: Sequence[int],
        micro_batch: Callable[[scoring.Batch], MicroBatch],
        finish: Callable[[dict[str, float]], dict[str, float]],
    ) -> None:
        """One optimizer step over a mini-batch, its gradient gathered micro-batch by micro-batch.

        rows: of `sequences`, the mini-batch. `micro_batch` divides its loss by the mini-batch's denominator;
        `finish` makes the step's metrics from the sums and extremes. Raises PrimecliError for a gradient that is not
        finite.
        """
        import torch

        self.optimizer.zero_grad()
        sums: dict[str, float] = {}
        with reporting_memory(self._remedies(len(rows))):
            for batch in scoring.plan(self.model, self.placement, sequences, rows, self.options.micro_batch_tokens):
                part = micro_batch(batch)
                part.loss.backward()  # type: ignore[no-untyped-call]
                for name, value in {**part.sums, "loss": float(part.loss.detach())}.items():
                    sums[name] = sums.get(name, 0.0) + value
                for name, value in part.extremes.items():
                    sums[name] = reduce_metric(name, [sums.get(name, value), value])
            limit = self.options.grad_clip or math.inf
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
            if not math.isfinite(norm):
                raise PrimecliError(
                    f"the gradient is not finite ({norm}) at step {self.step + 1}",
                    "look at the rewards and advantages of the input; no checkpoint was written",
                )
            lr = self.learning_rate()
            self.optimizer.step(lr)
        self.step += 1
        self.history.append({"step": self.step, **finish(sums), "grad_norm": norm, "lr": lr})
        if self.on_step is not None:
            self.on_step(self.history[-1])

    def metrics(self) -> dict[str, float]:
        """Each metric over the steps of this process that have it: its mean, or its extreme where it is one.

        `steps` is their number, `step` the last one's; with LoRA, `trained_parameters` the numbers that are trained.
        """
        names = list(dict.fromkeys(name for step in self.history for name in step if name != "step"))
        over_steps = {
            name: reduce_metric(name, [step[name] for step in self.history if name in step]) for name in names
        }
        trained = sum(parameter.numel() for parameter in self.optimizer.parameters.values())
        adapters = {"trained_parameters": trained} if self.lora else {}
        return {**over_steps, **adapters, "steps": len(self.history), "step": self.step}

    def release(self) -> None:
        """Gives the memory of the model and its optimizer back, that of a GPU to the next stage. No use after that."""
        del self.model, self.optimizer
        free_device_memory(self.placement.device)

    def save(self, directory: Path, recipe: Recipe, provenance: Mapping[str, Json]) -> None:
        """Writes the checkpoint; its weights are rounded to their stored precision on the way, so train no further."""
        record: dict[str, Json] = {
            "version": __version__,
            "stage": recipe.stage,
            "step": self.step,
            "fingerprint": recipe.fingerprint(),
            "recipe": recipe.as_json(),
            "provenance": [*self.state.provenance, provenance],
        }
        if self.lora is not None:
            record["lora"] = {**self.lora.as_json(), "base": self.state.base or self.state.lineage[-1]}
        checkpoints.save(
            directory,
            self.model,
            self.optimizer.tensors(),
            source=self.directory,
            same_base=self.state.lora is not None,
            record=record,
            lineage=self.state.lineage,
            steps=self.history,
        )


def reduce_metric(name: str, values: Sequence[float]) -> float:
    """The largest of a metric named `…_max`, the smallest of one named `…_min`, the mean of any other."""
    if name.endswith("_max"):
        return max(values)
    return min(values) if name.endswith("_min") else float(np.mean(values))


def token_positions(rollouts: Rollouts, rows: Sequence[int]) -> np.ndarray:
    """Where the response tokens of some rows stand among the batch's (N,), one row after another: (n,) int64."""
    starts = rollouts.starts()
    return np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])


def device_tensor(values: np.ndarray, placement: Placement) -> torch.Tensor:
    """A float32 tensor on the model's device."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(placement.device)
