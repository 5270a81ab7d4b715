"""Training shared by update-prm and update-policy: mini-batches, micro-batches, the step, the checkpoint."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from primecli import __version__, adapters, checkpoints, loggers, memory, models, pipe, scoring
from primecli.adapters import LoraOptions
from primecli.errors import PrimecliError, ReaderClosed, UsageError
from primecli.files import Json, directory_atomically, lock, make_directory, remove_leftovers
from primecli.inputs import Inputs, Shard
from primecli.memory import MemoryOptions
from primecli.optimizer import AdamW
from primecli.progress import Progress, duration, say
from primecli.recipe import Recipe, differences, provenance_record
from primecli.rollouts import Rollouts
from primecli.shards import require_columns
from primecli.summary import Summary

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How an update trains. mini_batch: responses an optimizer step; token_budget: tokens of a micro-batch.

    memory: what is done to need less of it. lora: the adapters that are trained, all parameters when None.
    """

    lr: float
    mini_batch: int
    epochs: int
    grad_clip: float
    weight_decay: float
    warmup_steps: int
    shuffle: bool
    seed: int
    token_budget: int
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    lora: LoraOptions | None = None


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What a micro-batch gives. loss: (), to be differentiated. sums: metrics, summed over the micro-batch.
    extremes: metrics named `…_max` or `…_min`, of which a mini-batch keeps the largest or the smallest."""

    loss: Tensor
    sums: Mapping[str, float]
    extremes: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """A model in float32 with AdamW, at the step where its checkpoint stopped.

    With LoRA only the adapters are trained, see `adapters`; `checkpoints.check_adapters` comes before.
    load: makes the model of a directory, its parameters in the dtype that is asked for. on_step: told each optimizer
    step's metrics, as it is taken.
    """

    def __init__(
        self,
        directory: Path,
        place: models.Placement,
        options: TrainingOptions,
        stage: str,
        load: Callable[..., Any] = models.load_model,
        on_step: Callable[[Mapping[str, float]], None] | None = None,
    ) -> None:
        import torch

        self.directory = directory
        self.place = place
        self.options = options
        self.on_step = on_step
        self.state = checkpoints.read_state(directory, stage)
        self.step = self.state.step
        self.model = load(directory, place, dtype=torch.float32)
        checkpoints.load_parameters(self.model, directory, self.state, options.lora, options.seed)
        if options.lora is not None and place.dtype == torch.bfloat16:
            adapters.hold_compactly(self.model)
        memory.gather_embedding_gradient(self.model)
        if options.memory.gradient_checkpointing:
            memory.recompute_activations(self.model)
        with models.reporting_memory(self._remedies(0), "the optimizer's moments"):
            self.optimizer = AdamW(
                adapters.trained(self.model),
                weight_decay=options.weight_decay,
                steps=self.step,
                offload=options.memory.offload_optimizer,
            )
        if self.state.has_moments:
            self.optimizer.load(directory / models.TRAINER_DIRECTORY / checkpoints.OPTIMIZER)
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

    def steps_for(self, rows: int) -> int:
        """Optimizer steps that this many rows come to."""
        return self.options.epochs * math.ceil(rows / self.options.mini_batch)

    def learning_rate(self) -> float:
        """Constant, after a linear warm-up over the first `warmup_steps` steps of the whole training."""
        if self.step < self.options.warmup_steps:
            return self.options.lr * (self.step + 1) / self.options.warmup_steps
        return self.options.lr

    def preflight(
        self,
        sequences: scoring.Sequences,
        mini_batches: Iterable[list[int]],
        forward: Callable[[scoring.Batch], Tensor],
    ) -> None:
        """Tries the largest micro-batch of the whole run, where that is wanted, so that memory runs out now or never.

        `forward` gives a micro-batch's result as a scalar to be differentiated.
        Weights, moments, random numbers and metrics stay as they are. Raises PrimecliError with what to lower.
        """
        if not self.options.memory.has_preflight(self.place.device):
            return
        plans = [
            scoring.plan(self.model, self.place, sequences, rows, self.options.token_budget) for rows in mini_batches
        ]
        memory.try_largest(plans, sequences, forward, self.optimizer.parameters.values(), self._remedies)

    def _remedies(self, rows: int) -> str:
        lora, budget = self.options.lora is not None, self.options.token_budget
        return self.options.memory.remedies(self.place.device, lora=lora, token_budget=budget, rows=rows)

    def take_step(
        self,
        sequences: scoring.Sequences,
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
        with models.reporting_memory(self._remedies(len(rows))):
            for batch in scoring.plan(self.model, self.place, sequences, rows, self.options.token_budget):
                part = micro_batch(batch)
                part.loss.backward()  # type: ignore[no-untyped-call]
                for name, value in {**part.sums, "loss": float(part.loss.detach())}.items():
                    sums[name] = sums.get(name, 0.0) + value
                for name, value in part.extremes.items():
                    sums[name] = pick_extreme(name, [sums.get(name, value), value])
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
        over_steps = {name: pick_extreme(name, [step[name] for step in self.history if name in step]) for name in names}
        trained = sum(parameter.numel() for parameter in self.optimizer.parameters.values())
        lora = {"trained_parameters": trained} if self.options.lora else {}
        return {**over_steps, **lora, "steps": len(self.history), "step": self.step}

    def save(self, directory: Path, recipe: Recipe, provenance: Mapping[str, Json]) -> None:
        """Writes the checkpoint; the trainer is done with after that."""
        record: dict[str, Json] = {
            "version": __version__,
            "stage": recipe.stage,
            "step": self.step,
            "fingerprint": recipe.fingerprint(),
            "recipe": recipe.as_json(),
            "provenance": [*self.state.provenance, provenance],
        }
        if self.options.lora is not None:
            record["lora"] = {**self.options.lora.as_json(), "base": self.state.base or self.state.lineage[-1]}
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


def pick_extreme(name: str, values: Sequence[float]) -> float:
    """The largest of a metric named `…_max`, the smallest of one named `…_min`, the mean of any other."""
    if name.endswith("_max"):
        return max(values)
    return min(values) if name.endswith("_min") else float(np.mean(values))


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """What every update lets the user say about its input and output."""

    shards: Sequence[str]
    checkpoint: Path
    force: bool = False
    partial: bool = False
    quiet: bool = False
    log: Sequence[str] = ()
    log_dir: Path | None = None


class UpdateRun:
    """One run of an update stage: reads the whole batch, writes one checkpoint, then passes the paths on."""

    def __init__(
        self,
        stage: str,
        options: UpdateOptions,
        *,
        config: Mapping[str, Json],
        execution: Mapping[str, Json],
        seed: int,
    ) -> None:
        self.stage = stage
        self.options = options
        self.config: dict[str, Any] = dict(config)
        self.execution: dict[str, Any] = dict(execution)
        self.seed = seed
        self.models: dict[str, str | None] = {}
        self.shards: list[Shard] = []
        self._signatures: dict[Path, tuple[tuple[str, int, int], ...]] = {}
        self.progress = Progress(stage, "rollouts", quiet=options.quiet)
        self._log = loggers.step_log(
            stage,
            options.log,
            options.log_dir or loggers.default_directory(options.checkpoint),
            {**config, **execution, "seed": seed},
            warn=lambda text: say(stage, text),
            note=lambda text: None if options.quiet else say(stage, text),
        )
        self._stack = ExitStack()
        self._started = time.time()
        self._waited = 0.0

    def __enter__(self) -> Self:
        target = self.options.checkpoint
        make_directory(target.parent)
        self._stack.enter_context(lock(target.parent / f".{target.name}.lock", str(target)))
        remove_leftovers(target.parent, of=target.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._log.close(ok=kind is None)
        self._stack.close()
        if isinstance(error, ReaderClosed) and not self.options.quiet:
            say(self.stage, "the reader has closed the pipe")
        return isinstance(error, ReaderClosed)

    def log_step(self, step: Mapping[str, float]) -> None:
        """Gives an optimizer step's metrics to the loggers that the user named."""
        self._log.write(int(step["step"]), loggers.named(self.stage, step))

    def use_model(self, role: str, directory: Path) -> None:
        """Takes a model's identity into the recipe; `read` checks that it is still the same after the wait."""
        self.models[role] = models.model_fingerprint(directory)
        self._signatures[directory] = models.signature(directory)

    def read(self, needs: Sequence[str], *, while_idle: Callable[[], None]) -> list[Shard]:
        """All input shards, to the end of the input, each checked for its columns.

        while_idle: done while waiting for them, unless the checkpoint is there and no model will be needed.
        """
        options = self.options
        inputs = Inputs(options.shards, partial=options.partial, together=True, warn=lambda text: say(self.stage, text))
        if options.force or not options.checkpoint.exists():
            inputs.while_idle = while_idle
        for shard in inputs:
            require_columns(shard.path, shard.footer.columns, needs)
            self.shards.append(shard)
        self._waited = inputs.waited
        for directory, before in self._signatures.items():
            if models.signature(directory) != before:
                raise PrimecliError(f"{directory} has changed while this stage waited for its input")
        return self.shards

    def recipe(self) -> Recipe:
        """What the checkpoint depends on."""
        contents = [shard.footer.content for shard in self.shards]
        return Recipe(self.stage, self.config, self.models, contents, self.seed)

    def skip(self) -> bool:
        """Whether the checkpoint is there already; then the input paths have been passed on."""
        target = self.options.checkpoint
        if not target.exists():
            return False
        if not (target / models.TRAINER_DIRECTORY / models.TRAINER_FILE).exists():
            raise UsageError(f"{target} exists and is not a checkpoint of primecli", "choose another --checkpoint")
        if self.options.force:
            return False
        record = models.read_trainer_record(target)
        if record.get("fingerprint") != self.recipe().fingerprint():
            raise PrimecliError(
                f"{target} exists and is of another run: {differences(record.get('recipe'), self.recipe().as_json())}",
                "choose another --checkpoint, or overwrite it with --force",
            )
        if not self.options.quiet:
            say(self.stage, f"{target} is there already, from the same input")
        pipe.emit_all([shard.path for shard in self.shards])
        return True

    def commit(self, trainer: Trainer, rows: int, groups: int, metrics: Mapping[str, float]) -> None:
        """Writes the checkpoint whole, reports, and passes the input paths on."""
        recipe = self.recipe()
        target = self.options.checkpoint
        provenance = provenance_record(recipe, self.execution, self._started, self.shards)
        summary = Summary(
            self.stage,
            "complete",
            shards=[shard.name for shard in self.shards],
            rows=rows,
            groups=groups,
            seconds=round(time.time() - self._started - self._waited, 3),
            config={**self.config, **self.execution, "seed": self.seed},
            metrics={**trainer.metrics(), **metrics, "peak_memory_gib": scoring.peak_memory_gib(trainer.place)},
            version=__version__,
            started=datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
        )
        with directory_atomically(target, replace=self.options.force) as directory:
            trainer.save(directory, recipe, provenance)
            summary.write(directory)
        self._log.close(ok=True)  # before the next stage starts, which may go on with the same run of wandb
        if not self.options.quiet:
            show_metrics(summary, trainer.history)
            if trainer.optimizer.offload and trainer.place.device.type == "cpu":
                say(self.stage, "--offload-optimizer saved nothing: on the CPU the moments are in its memory anyway")
            say(self.stage, f"{rows} rollouts in {groups} groups, {duration(summary.seconds)} -> {target}")
        pipe.emit_all([shard.path for shard in self.shards])


def show_metrics(summary: Summary, history: Sequence[Mapping[str, float]]) -> None:
    """The metrics as a table on stderr: of the first step, the last, and over all."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"primecli {summary.stage}", title_justify="left")
    table.add_column("metric")
    for heading in ("first step", "last step", "all steps"):
        table.add_column(heading, justify="right")
    for name, value in summary.metrics.items():
        steps = [f"{history[place][name]:.5g}" if name in history[place] else "" for place in (0, -1)]
        table.add_row(name, *steps, f"{value:.5g}")
    Console(file=sys.stderr).print(table)


def options_json(options: TrainingOptions) -> dict[str, Json]:
    """The options that change the result, for a recipe."""
    fields = asdict(options)
    del fields["token_budget"], fields["seed"], fields["memory"], fields["lora"]
    return {**fields, **(options.lora.as_json() if options.lora else {})}


def token_places(rollouts: Rollouts, rows: Sequence[int]) -> np.ndarray:
    """Where the response tokens of some rows stand among the batch's (N,), one row after another: (n,) int64."""
    starts = rollouts.starts()
    return np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])


def tensor(values: np.ndarray, place: models.Placement) -> torch.Tensor:
    """A float32 tensor on the model's device."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(place.device)
