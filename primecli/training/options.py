"""The options of the updates: how they train, where their checkpoint goes, and what they log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from primecli.errors import UsageError
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


class OldLogprobsSource(StrEnum):
    """Where the old log-probabilities of the probability ratio come from."""

    recompute = "recompute"
    rollout = "rollout"


class Kl(StrEnum):
    """How the KL to the reference is estimated."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Options):
    """The loss of the policy, what it refuses, and how the update is measured."""

    loss_aggregation: Aggregation = LossAggregation.token_mean
    clip: Annotated[
        bool, Option("Clip the ratio, as in PPO, or use the plain surrogate.", flags="--clip/--no-clip")
    ] = True
    clip_low: Annotated[float, Option("Clip the ratio at 1 minus this.", min=0.0, max=1.0)] = 0.2
    clip_high: Annotated[
        float, Option("Clip the ratio at 1 plus this; larger than --clip-low is clip-higher.", min=0.0)
    ] = 0.2
    dual_clip: Annotated[
        float | None,
        Option("For a negative advantage, limit the loss to this multiple of it.  [default: off]", min=1.0),
    ] = None
    ref: Annotated[
        str | None,
        Option(
            "Reference model of the KL; shards: use the ref_logprobs that score-prm stored.  [default: none]",
            "call",
            metavar="DIR|HUB_ID|shards",
        ),
    ] = None
    kl_coef: Annotated[float, Option("Weight of the KL to --ref in the loss.", min=0.0)] = 0.0
    kl: Annotated[Kl, Option("Estimator of that KL; as a loss, k1 has no effect on average.")] = Kl.k3
    entropy_coef: Annotated[float, Option("Weight of the entropy bonus in the loss.")] = 0.0
    old_logprobs: Annotated[
        OldLogprobsSource,
        Option(
            "Where the ratio's old log-probabilities come from. recompute: from the trainer, before its first step; "
            "rollout: from the sampler, which saves a forward pass."
        ),
    ] = OldLogprobsSource.recompute
    tis_cap: Annotated[
        float | None,
        Option(
            "Weight each token by the trainer's over the sampler's probability, capped at this.  [default: off]",
            min=1.0,
        ),
    ] = None
    max_logprob_gap: Annotated[
        float | None,
        Option(
            "Stop with exit code 5 and write no checkpoint if the mean gap between the sampler's and the trainer's "
            "log-probabilities is larger than this many nats.  [default: no limit]",
            "execution",
            min=0.0,
        ),
    ] = None
    strict: Annotated[
        bool, Option("Refuse rollouts that were sampled with top-p or top-k, instead of warning.", "call")
    ] = False
    max_staleness: Annotated[
        int, Option("Refuse rollouts that were sampled more than this many updates ago.", "execution", min=0)
    ] = 0
    measure: Annotated[
        int, Option("Measure the finished update on this many responses; 0 for none.", "execution", min=0)
    ] = 64

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        if self.kl_coef and self.ref is None:
            raise UsageError("--kl-coef needs a reference", "name it with --ref, or use score-prm's with --ref shards")
        for option, value in (("--tis-cap", self.tis_cap), ("--max-logprob-gap", self.max_logprob_gap)):
            if value is not None and self.old_logprobs == "rollout":
                raise UsageError(
                    f"{option} compares the trainer's log-probabilities with the sampler's, but --old-logprobs rollout "
                    "uses the sampler's for both",
                    "leave --old-logprobs at recompute",
                )

    def recipe(self) -> dict[str, Json]:
        """Adds the kind of reference: none, shards, or a model, whose fingerprint is recorded separately."""
        return {**super().recipe(), "ref": self.ref if self.ref in (None, FROM_SHARDS) else "model"}

    def execution(self) -> dict[str, Json]:
        """Adds the reference as the user named it."""
        return {**super().execution(), "ref_model": self.ref}
