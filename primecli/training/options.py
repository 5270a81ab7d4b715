"""The options of the updates: how they train, where their checkpoint goes, and what they log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from primecli.core.schedules import DECAYS, learning_rate
from primecli.errors import UsageError
from primecli.files import Json
from primecli.models.lora import LoraOptions, lora_options
from primecli.models.options import ComputeOptions, RankOptions
from primecli.options import Force, Option, Options, Partial, Quiet, Seed, declarations, positive
from primecli.pipeline.loggers import LoggerName
from primecli.pipeline.options import InputOptions, RunOptions

FROM_SHARDS = "shards"  # the value of --ref that stands for the ref_logprobs stored in the shards

Checkpoint = Annotated[
    Path, Option("Directory of the new checkpoint, which appears whole or not at all.", "call", metavar="DIR")
]
LearningRate = Annotated[float, Option("Learning rate of AdamW.", min=0.0)]
MiniBatch = Annotated[int, Option("Responses per optimizer step.", min=1)]
Epochs = Annotated[int, Option("Passes over the batch.", min=1)]
GradClip = Annotated[float, Option("Maximum norm of the gradient; 0 for no limit.", min=0.0)]
WeightDecay = Annotated[float, Option("Weight decay of AdamW.", min=0.0)]


class Schedule(StrEnum):
    """How the learning rate changes after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """The optimizer's steps: how large they are, how many, and over which rows."""

    lr: LearningRate
    mini_batch: MiniBatch = 256
    epochs: Epochs = 1
    grad_clip: GradClip = 1.0
    weight_decay: WeightDecay = 0.01
    warmup_steps: Annotated[
        int, Option("Optimizer steps until the learning rate is reached, counted over all iterations.", min=0)
    ] = 0
    schedule: Annotated[
        Schedule,
        Option(
            "The learning rate after the warm-up: constant, or falling to --min-lr over --total-steps, in a straight "
            "line or along half a cosine."
        ),
    ] = Schedule.constant
    total_steps: Annotated[
        int | None,
        Option(
            "With --schedule linear or cosine: optimizer steps of the whole training, warm-up included, counted over "
            "all iterations. Later steps have the rate --min-lr.",
            min=1,
        ),
    ] = None
    min_lr: Annotated[
        float, Option("With --schedule linear or cosine: the learning rate after --total-steps.", min=0.0)
    ] = 0.0
    adam_betas: Annotated[
        tuple[float, float],
        Option("Decay rates of AdamW's moments, of the gradient and of its square.", metavar="B1 B2"),
    ] = (0.9, 0.999)
    adam_eps: Annotated[
        float, Option("Epsilon of AdamW, which is added to the root of the second moment.", check=positive)
    ] = 1e-8
    no_decay_norms: Annotated[
        bool, Option("Leave biases and the weights of norms out of the weight decay, as transformers' Trainer does.")
    ] = False
    shuffle: Annotated[
        bool,
        Option("Shuffle the rows into mini-batches, or take them in order.", flags="--shuffle/--no-shuffle"),
    ] = True
    seed: Seed = 0

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        if self.schedule in DECAYS:
            self._check_decay()
        elif self.total_steps is not None or self.min_lr:
            option = "--min-lr" if self.total_steps is None else "--total-steps"
            raise UsageError(f"{option} needs a learning rate that falls", "add --schedule linear or --schedule cosine")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            first, second = self.adam_betas
            raise UsageError(f"--adam-betas {first:g} {second:g}: give two numbers of at least 0 and below 1")
        if self.no_decay_norms and not self.weight_decay:
            raise UsageError("--no-decay-norms needs a weight decay, and it is 0", "set it with --weight-decay")

    def _check_decay(self) -> None:
        if self.total_steps is None:
            raise UsageError(
                f"--schedule {self.schedule} needs --total-steps",
                "give the number of optimizer steps of the whole training, over all iterations",
            )
        if self.warmup_steps >= self.total_steps:
            raise UsageError(
                f"--warmup-steps {self.warmup_steps} leaves no step of --total-steps {self.total_steps} to decay in",
                "--total-steps counts those of the warm-up, too",
            )
        if self.min_lr > self.lr:
            raise UsageError(f"--min-lr {self.min_lr:g} is above --lr {self.lr:g}", "the rate falls from --lr to it")

    def recipe(self) -> dict[str, Json]:
        """Leaves out the options that came later where they have their defaults, so that earlier results stay valid."""
        declared = declarations(type(self))
        left_out = {name for name in _LATER if getattr(self, name) == declared[name].default}
        if self.schedule in DECAYS:
            left_out.discard("min_lr")
        return {name: value for name, value in super().recipe().items() if name not in left_out}

    def learning_rate(self, step: int) -> float:
        """The rate of the next optimizer step. step: those taken before, over all processes."""
        return learning_rate(
            step,
            self.lr,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
            total_steps=self.total_steps,
            min_lr=self.min_lr,
        )


_LATER = ("schedule", "total_steps", "min_lr", "adam_betas", "adam_eps", "no_decay_norms")


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Options):
    """What an update can do to use less memory; none of it changes the result beyond rounding."""

    gradient_checkpointing: Annotated[
        bool,
        Option(
            "Keep only each layer's input, and recompute the rest in the backward pass: less memory, about a "
            "fifth more time, the same result.",
            "execution",
        ),
    ] = False
    offload_optimizer: Annotated[
        bool,
        Option(
            "Keep the optimizer's moments in CPU memory: 8 bytes less on the GPU per trained parameter, slower steps, "
            "the same result.",
            "execution",
        ),
    ] = False
    preflight: Annotated[
        bool | None,
        Option(
            "Try the largest micro-batch first, so that memory runs out at the start or never.  [default: on a GPU]",
            "execution",
            flags="--preflight/--no-preflight",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options):
    """LoRA: which adapters to train instead of all weights."""

    lora_rank: Annotated[
        int | None,
        Option(
            "Train only adapters (LoRA): two matrices of this rank for each linear layer. The checkpoint is the merged "
            "model. Needs about ten times the --lr.  [default: train all weights]",
            "call",  # `recipe` adds the resolved adapters, if there is a rank
            min=1,
        ),
    ] = None
    lora_alpha: Annotated[
        float | None,
        Option(
            "With --lora-rank: the product of the matrices is multiplied by alpha / rank.  [default: 32]",
            "call",
            check=positive,
        ),
    ] = None
    lora_targets: Annotated[
        str | None,
        Option(
            "With --lora-rank: the layers to adapt, by name, such as q_proj,v_proj.  [default: all linear layers "
            "except the head]",
            "call",
            metavar="NAMES",
        ),
    ] = None

    def lora(self) -> LoraOptions | None:
        """The adapters to train; None if all weights are trained. Raises UsageError for contradictory options."""
        return lora_options(self.lora_rank, self.lora_alpha, self.lora_targets)

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        self.lora()

    def recipe(self) -> dict[str, Json]:
        """Adds the adapters, if any are trained."""
        lora = self.lora()
        return {**super().recipe(), **(lora.as_json() if lora else {})}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(OptimizerOptions, ComputeOptions, MemoryOptions, AdapterOptions, RankOptions):
    """How a model is trained."""


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(TrainingOptions, InputOptions, RunOptions):
    """The options that all updates share."""

    checkpoint: Checkpoint
    log: Annotated[
        tuple[LoggerName, ...],
        Option("Also log every optimizer step there, as soon as it is taken; may be repeated.", "call"),
    ] = ()
    log_dir: Annotated[
        Path | None,
        Option(
            "Directory of what --log writes, for all stages of a run.  [default: log, next to the directory of the "
            "checkpoints, such as ckpt/log for ckpt/policy/1]",
            "call",
            metavar="DIR",
        ),
    ] = None
    force: Force = False
    partial: Partial = False
    quiet: Quiet = False


class LossAggregation(StrEnum):
    """How the losses of tokens are aggregated into one."""

    token_mean = "token-mean"
    seq_mean_token_sum = "seq-mean-token-sum"
    seq_mean_token_mean = "seq-mean-token-mean"


Aggregation = Annotated[
    LossAggregation,
    Option("The loss of a mini-batch: the mean over its tokens, or the mean over responses of their sums or means."),
]
