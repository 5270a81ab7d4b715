"""The options that every update has: how it trains, where its checkpoint goes, what it logs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from primecli.core.registry import ESTIMATORS, choices_help
from primecli.errors import UsageError
from primecli.files import Json
from primecli.models.lora import LoraOptions, lora_options
from primecli.models.options import ComputeOptions
from primecli.options import Force, Option, Options, Partial, Quiet, Seed, StepSeparator, positive, separator
from primecli.pipeline.loggers import LoggerName
from primecli.pipeline.options import InputOptions, RunOptions

FROM_SHARDS = "shards"  # --ref: the ref_logprobs that score-prm stored

Checkpoint = Annotated[Path, Option("Where the new checkpoint goes; whole or not at all.", "call", metavar="DIR")]
LearningRate = Annotated[float, Option("Learning rate of AdamW.", min=0.0)]
MiniBatch = Annotated[int, Option("Responses an optimizer step.", min=1)]
Epochs = Annotated[int, Option("Passes over the batch.", min=1)]
GradClip = Annotated[float, Option("Largest norm of the gradient; 0 is no limit.", min=0.0)]
WeightDecay = Annotated[float, Option("Weight decay of AdamW.", min=0.0)]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """The optimizer's steps: how many, how long, over which rows."""

    lr: LearningRate
    mini_batch: MiniBatch = 256
    epochs: Epochs = 1
    grad_clip: GradClip = 1.0
    weight_decay: WeightDecay = 0.01
    warmup_steps: Annotated[int, Option("Optimizer steps, of all processes, until the full rate.", min=0)] = 0
    shuffle: Annotated[
        bool,
        Option("Shuffle rows into mini-batches, or take them in order.", flags="--shuffle/--no-shuffle"),
    ] = True
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Options):
    """What an update does to need less memory; none of it changes the result beyond rounding."""

    gradient_checkpointing: Annotated[
        bool,
        Option(
            "Keep each layer's input alone and compute the rest again in the backward pass: less memory, a third more "
            "time, the same result.",
            "execution",
        ),
    ] = False
    offload_optimizer: Annotated[
        bool,
        Option(
            "Keep the optimizer's moments in CPU memory: 8 bytes less on the GPU for each trained parameter, slower "
            "steps, the same result.",
            "execution",
        ),
    ] = False
    preflight: Annotated[
        bool | None,
        Option(
            "Try the largest micro-batch before anything else, so that memory runs out at once or never.  "
            "[default: on a GPU]",
            "execution",
            flags="--preflight/--no-preflight",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options):
    """LoRA: what is trained instead of all weights."""

    lora_rank: Annotated[
        int | None,
        Option(
            "Train matrices of this rank beside the linear layers and nothing else; the checkpoint is the merged "
            "model. Wants about ten times the --lr.  [default: train all weights]",
            "call",  # `recipe` adds what these come to, where there is a rank
            min=1,
        ),
    ] = None
    lora_alpha: Annotated[
        float | None,
        Option("With --lora-rank: their product counts alpha / rank times.  [default: 32]", "call", check=positive),
    ] = None
    lora_targets: Annotated[
        str | None,
        Option(
            "With --lora-rank: the layers, by name, as in q_proj,v_proj.  [default: all linear layers but the head]",
            "call",
            metavar="NAMES",
        ),
    ] = None

    def lora(self) -> LoraOptions | None:
        """The adapters to train; None where all weights are trained. Raises UsageError for options that do not fit."""
        return lora_options(self.lora_rank, self.lora_alpha, self.lora_targets)

    def check(self) -> None:
        """Raises UsageError for options that do not fit together."""
        super().check()
        self.lora()

    def recipe(self) -> dict[str, Json]:
        """With the adapters that are trained, where there are any."""
        lora = self.lora()
        return {**super().recipe(), **(lora.as_json() if lora else {})}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(OptimizerOptions, ComputeOptions, MemoryOptions, AdapterOptions):
    """How a model is trained."""


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(TrainingOptions, InputOptions, RunOptions):
    """What every update has."""

    checkpoint: Checkpoint
    log: Annotated[
        tuple[LoggerName, ...],
        Option("Log every optimizer step there too, as it is taken; may be given twice.", "call"),
    ] = ()
    log_dir: Annotated[
        Path | None,
        Option(
            "What --log writes, for all stages of a run.  [default: log, beside the directory of the checkpoints: "
            "ckpt/log for ckpt/policy/1]",
            "call",
            metavar="DIR",
        ),
    ] = None
    force: Force = False
    partial: Partial = False
    quiet: Quiet = False


class LossAggregation(StrEnum):
    """How the losses of tokens become one."""

    token_mean = "token-mean"
    seq_mean_token_sum = "seq-mean-token-sum"
    seq_mean_token_mean = "seq-mean-token-mean"


Aggregation = Annotated[
    LossAggregation,
    Option("Mean over all tokens of a mini-batch; or mean over responses of their tokens' sum, or mean."),
]


class OldLogprobsSource(StrEnum):
    """Whose log-probabilities the probability ratio is taken to."""

    recompute = "recompute"
    rollout = "rollout"


class Kl(StrEnum):
    """How the KL to the reference is estimated."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Options):
    """The loss of the policy, its gates, and how the update is measured."""

    loss_aggregation: Aggregation = LossAggregation.token_mean
    clip: Annotated[bool, Option("PPO's clip, or the plain surrogate.", flags="--clip/--no-clip")] = True
    clip_low: Annotated[float, Option("PPO clip below 1.", min=0.0, max=1.0)] = 0.2
    clip_high: Annotated[float, Option("PPO clip above 1; more than --clip-low is clip-higher.", min=0.0)] = 0.2
    dual_clip: Annotated[float | None, Option("Bound the loss of negative advantages by this multiple.", min=1.0)] = (
        None
    )
    ref: Annotated[
        str | None,
        Option(
            "Reference of the KL; shards takes the ref_logprobs that score-prm stored.  [default: none]",
            "call",
            metavar="DIR|HUB_ID|shards",
        ),
    ] = None
    kl_coef: Annotated[float, Option("Weight of the KL to --ref in the loss.", min=0.0)] = 0.0
    kl: Annotated[Kl, Option("Estimate of that KL; as a loss, k1 has no effect on average.")] = Kl.k3
    entropy_coef: Annotated[float, Option("Weight of the entropy bonus in the loss.")] = 0.0
    old_logprobs: Annotated[
        OldLogprobsSource,
        Option("recompute: by the trainer before its first step; rollout: the sampler's, which saves a pass."),
    ] = OldLogprobsSource.recompute
    tis_cap: Annotated[
        float | None,
        Option("Weigh tokens by trainer's over sampler's probability, cut at this.  [default: off]", min=1.0),
    ] = None
    max_logprob_gap: Annotated[
        float | None,
        Option(
            "Stop with exit code 5, without a checkpoint, when the mean gap between the sampler's and the trainer's "
            "log-probabilities is larger; nats.  [default: no gate]",
            "execution",
            min=0.0,
        ),
    ] = None
    strict: Annotated[bool, Option("Refuse rollouts sampled with top-p or top-k, rather than warn.", "call")] = False
    max_staleness: Annotated[
        int, Option("Updates since the weights that sampled the rollouts.", "execution", min=0)
    ] = 0
    measure: Annotated[
        int, Option("Responses on which the finished update is measured; 0 is none.", "execution", min=0)
    ] = 64

    def check(self) -> None:
        """Raises UsageError for options that do not fit together."""
        super().check()
        if self.kl_coef and self.ref is None:
            raise UsageError("--kl-coef needs a reference", "name it with --ref, or take score-prm's with --ref shards")
        for option, value in (("--tis-cap", self.tis_cap), ("--max-logprob-gap", self.max_logprob_gap)):
            if value is not None and self.old_logprobs == "rollout":
                raise UsageError(
                    f"{option} compares the trainer's log-probabilities with the sampler's, and --old-logprobs rollout "
                    "takes the sampler's for both",
                    "leave --old-logprobs at recompute",
                )

    def recipe(self) -> dict[str, Json]:
        """With the kind of reference; which model it is, its fingerprint says."""
        return {**super().recipe(), "ref": self.ref if self.ref in (None, FROM_SHARDS) else "model"}

    def execution(self) -> dict[str, Json]:
        """With the reference as it was named."""
        return {**super().execution(), "ref_model": self.ref}


class Granularity(StrEnum):
    """Where process rewards stand."""

    token = "token"
    step = "step"
    whole = "whole"


class ProcessNorm(StrEnum):
    """How process rewards are scaled."""

    batch = "batch"
    none = "none"


class ProcessBaseline(StrEnum):
    """What is taken off process rewards."""

    paper = "paper"
    recipe = "recipe"


@dataclass(frozen=True, kw_only=True)
class AdvantageOptions(Options):
    """How rewards become advantages."""

    estimator: Annotated[str, Option(choices_help(ESTIMATORS), choices=tuple(ESTIMATORS))] = "rloo"
    outcome_coef: Annotated[float, Option("Weight of the outcome reward; 0 leaves it out.")] = 1.0
    process_coef: Annotated[float, Option("Weight of the process rewards; 0 leaves them out.")] = 1.0
    outcome_gamma: Annotated[
        float, Option("Discount a token of the outcome reward, which stands on the last.", min=0.0, max=1.0)
    ] = 1.0
    process_gamma: Annotated[float, Option("Discount a token of process rewards.", min=0.0, max=1.0)] = 1.0
    lam: Annotated[float, Option("gae: 1 trusts rewards, 0 the critic.", min=0.0, max=1.0)] = 0.95
    granularity: Annotated[
        Granularity,
        Option("Process rewards a token, or their sum a step on its last token, or a response on its last."),
    ] = Granularity.token
    step_separator: StepSeparator = "\\n"
    tokenizer: Annotated[
        str | None,
        Option(
            "For steps, whose tokens it spells.  [default: the model that generate names in the shards]",
            "call",
            metavar="DIR|HUB_ID",
        ),
    ] = None
    process_norm: Annotated[
        ProcessNorm, Option("batch: divide process rewards by the batch's largest |reward-to-go|.")
    ] = ProcessNorm.batch
    process_baseline: Annotated[
        ProcessBaseline, Option("rloo: paper, the mean of the others; recipe, as in the first code and verl.")
    ] = ProcessBaseline.paper
    drop_last_token_reward: Annotated[bool, Option("Leave the last token's process reward out, as verl does.")] = False
    whiten: Annotated[
        bool, Option("Mean 0 and variance 1 over all response tokens of the batch.", flags="--whiten/--no-whiten")
    ] = True

    def check(self) -> None:
        """Raises UsageError for options that do not fit together."""
        super().check()
        if not self.outcome_coef and not self.process_coef:
            raise UsageError("--outcome-coef and --process-coef are both 0: nothing is rewarded")
        if self.process_baseline == "recipe" and self.estimator != "rloo":
            raise UsageError(f"--process-baseline recipe is of --estimator rloo, not of {self.estimator}")
        if self.estimator == "gae" and self.outcome_gamma != self.process_gamma:
            raise UsageError(
                f"--estimator gae takes one discount, and --outcome-gamma is {self.outcome_gamma:g}, --process-gamma "
                f"{self.process_gamma:g}",
                "one critic expects one return: give both the same",
            )
        self.separator()

    def separator(self) -> str | None:
        """The text between two steps; None where process rewards are not gathered by step."""
        return separator(self.step_separator) if self.granularity is Granularity.step else None

    def recipe(self) -> dict[str, Json]:
        """With the options that the others make meaningless as null."""
        return {
            **super().recipe(),
            "lam": self.lam if self.estimator == "gae" else None,
            "step_separator": self.separator(),
        }
