"""The options of the updates: how they train, where their checkpoint goes, and what they log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from primecli.files import Json
from primecli.models.lora import LoraOptions, lora_options
from primecli.models.options import ComputeOptions, RankOptions
from primecli.options import Force, Option, Options, Partial, Quiet, Seed, positive
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
    shuffle: Annotated[
        bool,
        Option("Shuffle the rows into mini-batches, or take them in order.", flags="--shuffle/--no-shuffle"),
    ] = True
    seed: Seed = 0


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
