"""Options that several commands share, each declared once."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Device(StrEnum):
    """Where a model computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """Precision of a model's products."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Packing(StrEnum):
    """Whether sequences share a row of a batch, and their prompt."""

    auto = "auto"
    on = "on"
    off = "off"


class LossAggregation(StrEnum):
    """How tokens' losses become one."""

    token_mean = "token-mean"
    seq_mean_token_sum = "seq-mean-token-sum"
    seq_mean_token_mean = "seq-mean-token-mean"


class Logger(StrEnum):
    """Where numbers go besides files."""

    tensorboard = "tensorboard"
    wandb = "wandb"


def separator(text: str) -> str:
    """The text that --step-separator means. Refuses an empty one."""
    if not text:
        raise typer.BadParameter("give the text that stands between two steps", param_hint="--step-separator")
    return text.replace("\\n", "\n").replace("\\t", "\t")


def finite(value: float | None) -> float | None:
    """Refuses nan and inf, which pass every bound."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def positive(value: float | None) -> float | None:
    """Refuses 0, numbers below it, nan and inf."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a positive number")
    return value


Shards = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the annotation)
    typer.Argument(
        metavar="[SHARDS]...",
        help="Shards, directories of shards or globs. With none, or with -, paths are read from stdin, one a line.",
        show_default=False,
    ),
]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--out",
        metavar="DIR",
        help="Output directory.  [default: beside the input directory, named after the stage]",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Make again and overwrite what is there.")]
Partial = Annotated[
    bool, typer.Option("--partial", help="Take what is there of a run that failed, was killed or still runs.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Write errors only to stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all randomness.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute; auto is the GPU where there is one.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Precision of products; auto is bfloat16 on a GPU, float32 on the CPU.")
]
Threads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", min=1, help="CPU threads.  [default: OMP_NUM_THREADS, or all cores]", show_default=False),
]
MicroBatchTokens = Annotated[
    int,
    typer.Option(
        "--micro-batch-tokens",
        min=1,
        help="Tokens computed at a time, padding included: bounds memory, changes no result beyond rounding.",
    ),
]
PackingOption = Annotated[
    Packing,
    typer.Option(
        "--packing",
        help="Sequences end to end in one row, a prompt that several share computed once, instead of padding; equal to "
        "rounding. auto: on the CPU, where it saves enough and the model allows it.",
    ),
]
LoraRank = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--lora-rank",
        min=1,
        help="Train matrices of this rank beside the linear layers and nothing else; the checkpoint is the merged "
        "model. Wants about ten times the --lr.  [default: train all weights]",
        show_default=False,
    ),
]
LoraAlpha = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--lora-alpha",
        help="With --lora-rank: their product counts alpha / rank times.  [default: 32]",
        callback=positive,
        show_default=False,
    ),
]
LoraTargets = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--lora-targets",
        metavar="NAMES",
        help="With --lora-rank: the layers, by name, as in q_proj,v_proj.  [default: all linear layers but the head]",
        show_default=False,
    ),
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        help="Keep each layer's input alone and compute the rest again in the backward pass: less memory, a third "
        "more time, the same result.",
    ),
]
OffloadOptimizer = Annotated[
    bool,
    typer.Option(
        "--offload-optimizer",
        help="Keep the optimizer's moments in CPU memory: 8 bytes less on the GPU for each trained parameter, slower "
        "steps, the same result.",
    ),
]
Preflight = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--preflight/--no-preflight",
        help="Try the largest micro-batch before anything else, so that memory runs out at once or never.  "
        "[default: on a GPU]",
        show_default=False,
    ),
]
Log = Annotated[
    Optional[list[Logger]],  # noqa: UP045
    typer.Option(
        "--log", help="Log every optimizer step there too, as it is taken; may be given twice.", show_default=False
    ),
]
LogDir = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--log-dir",
        metavar="DIR",
        help="What --log writes, for all stages of a run.  [default: log, beside the directory of the checkpoints: "
        "ckpt/log for ckpt/policy/1]",
        show_default=False,
    ),
]
Prm = Annotated[str, typer.Option("--prm", metavar="DIR|HUB_ID", help="The process reward model, a causal LM.")]
Ref = Annotated[
    str,
    typer.Option(
        "--ref",
        metavar="DIR|HUB_ID|rollout|shards",
        help="The reference, usually the SFT model; rollout: the sampling policy's own log-probabilities; shards: the "
        "ref_logprobs that are there already.",
    ),
]
Critic = Annotated[
    str, typer.Option("--critic", metavar="DIR|HUB_ID", help="The critic, or any causal LM to start one from.")
]
Aggregation = Annotated[
    LossAggregation,
    typer.Option(
        "--loss-aggregation",
        help="Mean over all tokens of a mini-batch; or mean over responses of their tokens' sum, or mean.",
    ),
]
Beta = Annotated[
    float, typer.Option("--beta", min=0.0, help="Scale of the log-ratio that is the reward.", callback=finite)
]
Checkpoint = Annotated[
    Path,
    typer.Option("--checkpoint", metavar="DIR", help="Where the new checkpoint goes; whole or not at all."),
]
MiniBatch = Annotated[int, typer.Option("--mini-batch", min=1, help="Responses an optimizer step.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the batch.")]
GradClip = Annotated[
    float, typer.Option("--grad-clip", min=0.0, help="Largest norm of the gradient; 0 is no limit.", callback=finite)
]
WeightDecay = Annotated[float, typer.Option("--weight-decay", min=0.0, help="Weight decay of AdamW.", callback=finite)]
WarmupSteps = Annotated[
    int,
    typer.Option("--warmup-steps", min=0, help="Optimizer steps, of all processes, until the full rate."),
]
Shuffle = Annotated[
    bool, typer.Option("--shuffle/--no-shuffle", help="Shuffle rows into mini-batches, or take them in order.")
]
StepSeparator = Annotated[
    str,
    typer.Option("--step-separator", help="Text between two steps; \\n and \\t are read as such.", show_default="\\n"),
]
