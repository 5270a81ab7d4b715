"""Training as all updates share it: mini-batches, micro-batches, the optimizer step, and the checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from primecli import __version__
from primecli.errors import PrimecliError
from primecli.files import Json
from primecli.models import checkpoints, loading, lora, saving, scoring, sharded, sharded_checkpoints
from primecli.models.compiled import compile_layers
from primecli.models.device import Placement, free_device_memory, reporting_memory, wait_for_memory
from primecli.models.identity import TRAINER_DIRECTORY
from primecli.parallel.ranks import Ranks, joined, reduced
from primecli.pipeline.recipe import Recipe
from primecli.shards.rollouts import Rollouts, Sequences
from primecli.training import memory
from primecli.training.optimizer import adamw
from primecli.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from primecli.parallel.sharding import Shares


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The loss and the metrics of one micro-batch.

    loss: (), to be differentiated; already divided by the denominator of the whole mini-batch.
    sums: metrics summed over the tokens or responses of the micro-batch, such as {"entropy": 41.2}; `take_step` adds up
        those of the mini-batch and divides them by its denominator.
    extremes: metrics named `…_max` or `…_min`, such as {"ratio_max": 1.3}; `take_step` keeps the most extreme value.
    """

    loss: Tensor
    sums: Mapping[str, float]
    extremes: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """A model in float32 with AdamW, at the step where its checkpoint stopped.

    With LoRA only the adapters are trained (models/lora.py); call `checkpoints.check_adapters` first.

    directory: the model or checkpoint to continue from.
    placement: the device and precision to compute with.
    options: how to train.
    stage: the update that trains, such as update-prm; the moments in a checkpoint of another update are not used.
    load: loads the model of a directory, with parameters of the given dtype.
    on_step: called with the metrics of each optimizer step, right after it.
    state: what `directory` says of earlier training.
    step: optimizer steps so far, over all processes.
    history: the metrics of each optimizer step of this process, as in trainer/steps.jsonl.
    ranks: the processes that train together, each with some rows of every matrix; None where this one is alone.
    trained: the parameters that are trained, by their names in a checkpoint.
    seconds: how long loading and saving took: load_seconds, save_seconds.
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
        self.directory = directory
        self.placement = placement
        self.options = options
        self.on_step = on_step
        self.state = checkpoints.read_state(directory, stage)
        self.step = self.state.step
        self.lora = options.lora()
        self.ranks = joined()
        self.seconds: dict[str, float] = {}
        started = time.monotonic()
        self.model = self._load(load)
        memory.accumulate_embedding_gradient(self.model)
        compile_layers(self.model, placement)
        if options.gradient_checkpointing:
            memory.recompute_activations(self.model)
        self.trained = lora.trained(self.model)
        self._shares = None if self.ranks is None else _shares(self.trained, self.ranks)
        own = self.trained if self._shares is None else self._shares.parameters
        wait_for_memory(placement.device, memory.bytes_to_come(own.values(), offload=options.offload_optimizer))
        with reporting_memory(self._remedies(0), "the optimizer's moments"):
            self.optimizer = adamw(own, self.model, options, self.state)
            if self.state.has_moments:
                self._load_moments(directory / TRAINER_DIRECTORY / checkpoints.OPTIMIZER)
        self.seconds["load_seconds"] = time.monotonic() - started
        self.history: list[dict[str, float]] = []
        self._idle: Callable[[scoring.Batch], Tensor] | None = None

    def _load(self, load: Callable[..., Any]) -> Any:
        """The model, with float32 parameters and, with LoRA, its adapters; spread over the ranks if there are any."""
        import torch

        directory, placement, seed = self.directory, self.placement, self.options.seed
        if self.ranks is not None:
            return sharded.load_to_train(directory, placement, self.state, self.lora, seed, of=load, ranks=self.ranks)
        model = load(directory, placement, dtype=torch.float32, to_train=True)
        checkpoints.load_parameters(model, directory, self.state, self.lora, seed)
        if self.lora is not None and placement.dtype == torch.bfloat16:
            lora.hold_compactly(model)
        return model

    def _load_moments(self, path: Path) -> None:
        if self.ranks is None:
            self.optimizer.load(path)
            return
        with sharded.moments(path, self.trained, self.ranks) as read:
            self.optimizer.load(path, read)

    def mini_batches(self, rows: int) -> Iterator[list[int]]:
        """The row numbers of each mini-batch, epoch by epoch; the last one of an epoch may be smaller."""
        for order in self._orders(rows):
            for start in range(0, rows, self.options.mini_batch):
                yield order[start : start + self.options.mini_batch].tolist()

    def group_mini_batches(self, group_index: np.ndarray, taken: np.ndarray) -> Iterator[list[int]]:
        """As `mini_batches`, with whole groups: as many as fit into `mini_batch` rows, but at least one.

        group_index: (B,), the number of each response's group. taken: the numbers of the groups to take, at least one.
        """
        members = [np.flatnonzero(group_index == group).tolist() for group in taken]
        for order in self._orders(len(members)):
            batch: list[int] = []
            for group in order.tolist():
                if batch and len(batch) + len(members[group]) > self.options.mini_batch:
                    yield batch
                    batch = []
                batch.extend(members[group])
            yield batch

    def _orders(self, number: int) -> Iterator[np.ndarray]:
        """For each epoch, the numbers from 0 to `number` - 1 in the order of that epoch."""
        for epoch in range(self.options.epochs):
            if self.options.shuffle:
                key = [self.options.seed, self.state.step, epoch]
                yield np.random.Generator(np.random.PCG64(key)).permutation(number)
            else:
                yield np.arange(number)

    def total_steps(self, rows: int) -> int:
        """The number of optimizer steps that this process takes on this many rows."""
        return self.options.epochs * math.ceil(rows / self.options.mini_batch)

    def learning_rate(self) -> float:
        """The rate of the next step, by its number in the whole training."""
        return self.options.learning_rate(self.step)

    def preflight(
        self,
        sequences: Sequences,
        mini_batches: Iterable[list[int]],
        forward: Callable[[scoring.Batch], Tensor],
    ) -> None:
        """Tries the largest micro-batch of the run first, unless the options say not to: memory runs out now or never.

        forward: computes a micro-batch, and returns a scalar to be differentiated.

        Weights, moments, random numbers and metrics do not change. Raises PrimecliError, saying which options need less
        memory.
        """
        self._idle = forward
        if not memory.runs_preflight(self.options, self.placement.device):
            return
        plans = [
            scoring.plan(self.model, self.placement, sequences, rows, self.options.micro_batch_tokens)
            for rows in mini_batches
        ]
        memory.try_largest_micro_batches(plans, sequences, forward, self.trained.values(), self._remedies)

    def _remedies(self, rows: int) -> str:
        return memory.remedies(self.options, self.placement.device, rows)

    def score(
        self,
        sequences: Sequences,
        *,
        per_token: Callable[..., Tensor] | None = None,
        done: Callable[[int], None] = lambda rows: None,
    ) -> np.ndarray:
        """(N,) float32: the log-probability of every response token under the current weights, without gradient.

        per_token, done: as in `scoring.score`.
        """
        budget = self.options.micro_batch_tokens
        return scoring.score(
            self.model, self.placement, sequences, micro_batch_tokens=budget, per_token=per_token, done=done
        )

    def score_reference(
        self, directory: Path, sequences: Sequences, load: Callable[..., Any], *, done: Callable[[int], None]
    ) -> np.ndarray:
        """(N,) float32: the same under a reference model, which is loaded for this and then freed."""
        if self.ranks is None:
            reference = load(directory, self.placement)
        else:
            reference = sharded.load(directory, self.placement, of=load, ranks=self.ranks)
        compile_layers(reference, self.placement)
        budget = self.options.micro_batch_tokens
        return scoring.score(reference, self.placement, sequences, micro_batch_tokens=budget, done=done)

    def device_tensor(self, values: np.ndarray) -> torch.Tensor:
        """The values as a float32 tensor on the model's device."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.placement.device)

    def token_weights(
        self, rollouts: Rollouts, rows: Sequence[int], batch: scoring.Batch, aggregation: str
    ) -> torch.Tensor:
        """(n,) float64: the weight of each response token of a micro-batch in the loss of the mini-batch `rows`."""
        import torch

        from primecli.core.losses import token_weights

        lengths = torch.from_numpy(rollouts.response_lengths)  # (B,)
        tokens = int(lengths[rows].sum())
        weights = token_weights(lengths[batch.rows], aggregation, tokens=tokens, responses=len(rows))
        return weights.to(self.placement.device)

    def take_step(
        self,
        sequences: Sequences,
        rows: Sequence[int],
        micro_batch: Callable[[scoring.Batch], MicroBatch],
        denominator: int,
        more_metrics: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """Takes one optimizer step over a mini-batch, accumulating its gradient over micro-batches.

        rows: the mini-batch, as row numbers of `sequences`.
        micro_batch: computes the loss and the metrics of a micro-batch.
        denominator: what the sums of the metrics are divided by, such as the number of the mini-batch's tokens.
        more_metrics: further metrics of the step, called after its last micro-batch.

        Raises PrimecliError for a gradient that is not finite.
        """
        from primecli.parallel.sharding import spread_gradient

        self.optimizer.zero_grad()
        loss = 0.0
        sums: dict[str, float] = {}
        extremes: dict[str, float] = {}
        with reporting_memory(self._remedies(len(rows))):
            batches = scoring.plan(self.model, self.placement, sequences, rows, self.options.micro_batch_tokens)
            for number, (batch, counts) in enumerate(scoring.shares(self.model, sequences, batches), start=1):
                spread_gradient(self.model, now=number == len(batches))
                if not counts:
                    self._take_part(batch)
                    continue
                part = micro_batch(batch)
                part.loss.backward()  # type: ignore[no-untyped-call]
                loss += float(part.loss.detach())
                for name, value in part.sums.items():
                    sums[name] = sums.get(name, 0.0) + value
                for name, value in part.extremes.items():
                    extremes[name] = reduce_metric(name, [extremes.get(name, value), value])
            norm = self._clip_gradient()
            if not math.isfinite(norm):
                raise PrimecliError(
                    f"the gradient is not finite ({norm}) at step {self.step + 1}",
                    "check the rewards and advantages of the input; no checkpoint was written",
                )
            lr = self.learning_rate()
            self.optimizer.step(lr)
        self.step += 1
        if self.ranks is not None:
            loss, sums, extremes = _over_ranks(self.ranks.gather((loss, sums, extremes)))
        means = {name: value / denominator for name, value in sums.items()}
        metrics = {**means, "loss": loss, **extremes, **more_metrics()}
        self.history.append({"step": self.step, **metrics, "grad_norm": norm, "lr": lr})
        if self.on_step is not None:
            self.on_step(self.history[-1])

    def _take_part(self, batch: scoring.Batch) -> None:
        """Computes a batch that counts nothing, because this rank has no other and all of them exchange parameters."""
        assert self._idle is not None, "preflight() comes first"
        (self._idle(batch) * 0.0).backward()  # type: ignore[no-untyped-call]

    def _clip_gradient(self) -> float:
        """The norm of the mini-batch's gradient, which is scaled down where it is above the limit."""
        import torch

        limit = self.options.grad_clip or math.inf
        if self._shares is None:
            return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self._shares.take_gradients()
        return self._shares.clip_gradient(limit)

    def over_ranks(self, values: np.ndarray) -> np.ndarray:
        """What all ranks have computed, where each has put its own numbers among zeros."""
        return values if self.ranks is None else self.ranks.total(values)

    def metrics(self) -> dict[str, float]:
        """Each metric over the optimizer steps of this process that have it: the mean, or of an extreme the extreme.

        Adds `steps`, the number of those steps; `step`, the number of the last one; and, with LoRA,
        `trained_parameters`, the number of parameters that are trained.
        """
        names = list(dict.fromkeys(name for step in self.history for name in step if name != "step"))
        over_steps = {
            name: reduce_metric(name, [step[name] for step in self.history if name in step]) for name in names
        }
        trained = sum(parameter.numel() for parameter in self.trained.values())
        adapters = {"trained_parameters": trained} if self.lora else {}
        return {**over_steps, **adapters, "steps": len(self.history), "step": self.step}

    def release(self) -> None:
        """Releases the memory of the model and the optimizer. The trainer cannot be used after that."""
        del self.model, self.optimizer, self.trained, self._shares, self._idle
        free_device_memory(self.placement.device)

    def record(self, recipe: Recipe, provenance: Mapping[str, Json]) -> dict[str, Json]:
        """What the checkpoint says of itself.

        recipe: what the checkpoint depends on. provenance: the record of how it was made.
        """
        record: dict[str, Json] = {
            "version": __version__,
            "stage": recipe.stage,
            "step": self.step,
            "fingerprint": recipe.fingerprint(),
            "recipe": recipe.as_json(),
            "provenance": [*self.state.provenance, provenance],
        }
        if own_steps := self.optimizer.own_steps(self.step):
            record["own_steps"] = own_steps
        if self.lora is not None:
            record["lora"] = {**self.lora.as_json(), "base": self.state.base or self.state.lineage[-1]}
        return record

    def save(self, directory: Path, record: Mapping[str, Json]) -> None:
        """Writes the checkpoint. The trainer cannot be used after that.

        record: as `record` makes it; rank 0 writes it.
        """
        started = time.monotonic()
        what: dict[str, Any] = {
            "source": self.directory,
            "same_base": self.state.lora is not None,
            "record": record,
            "lineage": self.state.lineage,
            "steps": self.history,
        }
        moments = self.optimizer.tensors()
        if self.ranks is None:
            saving.save(directory, self.model, moments, **what)
        else:
            sharded_checkpoints.save(directory, self.model, moments, **what, ranks=self.ranks)
        self.seconds["save_seconds"] = time.monotonic() - started


def _shares(trained: Mapping[str, Any], ranks: Ranks) -> Shares:
    from primecli.parallel.sharding import Shares

    return Shares(trained, ranks)


def _over_ranks(
    parts: Sequence[tuple[float, dict[str, float], dict[str, float]]],
) -> tuple[float, dict[str, float], dict[str, float]]:
    """The loss, the sums and the extremes of a mini-batch, from those of every rank."""
    extremes: dict[str, float] = {}
    for _, _, part in parts:
        for name, value in part.items():
            extremes[name] = reduce_metric(name, [extremes.get(name, value), value])
    return sum(loss for loss, _, _ in parts), reduced([sums for _, sums, _ in parts]), extremes


def reduce_metric(name: str, values: Sequence[float]) -> float:
    """The largest value of a metric named `…_max`, the smallest of one named `…_min`, the mean of any other."""
    if name.endswith("_max"):
        return max(values)
    return min(values) if name.endswith("_min") else float(np.mean(values))


def token_positions(rollouts: Rollouts, rows: Sequence[int]) -> np.ndarray:
    """(n,) int64: the indices of some rows' response tokens among all N tokens of the batch, row after row."""
    starts = rollouts.starts()  # (B + 1,)
    return np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])


def select_rows(sequences: Sequences, rows: Sequence[int]) -> Sequences:
    """These rows of the sequences, in that order."""
    return Sequences(
        [sequences.prompt_ids[row] for row in rows],
        [sequences.response_ids[row] for row in rows],
        None if sequences.temperature is None else sequences.temperature[rows],
    )
