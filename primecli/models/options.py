"""The options that all stages which compute with a model share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from primecli.files import Json
from primecli.models.device import device_problem, resolve_dtype, resolve_placement, set_threads
from primecli.options import Option, Options
from primecli.parallel.launch import nproc_problem

if TYPE_CHECKING:
    from primecli.models.device import Placement


class Dtype(StrEnum):
    """The precision of a model's matrix products."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Packing(StrEnum):
    """Whether sequences share a row of a batch instead of being padded, and share the computation of their prompt."""

    auto = "auto"
    on = "on"
    off = "off"


MicroBatchTokens = Annotated[
    int,
    Option(
        "Tokens per micro-batch, padding included. Limits memory; changes results only by rounding.",
        "execution",
        min=1,
    ),
]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """The device and the precision of a model.

    The resolved precision is part of the recipe, so --dtype float32 and an `auto` that becomes float32 are the same.
    """

    device: Annotated[
        str,
        Option(
            "Where to compute; auto is a GPU if there is one, cuda:1 is the second GPU.",
            "execution",
            metavar="<auto|cpu|cuda|cuda:N>",
            check=device_problem,
        ),
    ] = "auto"
    dtype: Annotated[
        Dtype, Option("Precision of matrix products; auto is bfloat16 on a GPU, float32 on a CPU.", "call")
    ] = Dtype.auto
    threads: Annotated[
        int | None, Option("CPU threads.  [default: OMP_NUM_THREADS, or all cores]", "execution", min=1)
    ] = None

    def resolved_dtype(self) -> str:
        """The precision that `dtype` stands for here: float32 or bfloat16."""
        return resolve_dtype(self.device, self.dtype.value)

    def recipe(self) -> dict[str, Json]:
        """Adds the resolved precision."""
        return {**super().recipe(), "dtype": self.resolved_dtype()}


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(DeviceOptions):
    """How sequences are computed: on which device, in what precision, and in what batches."""

    micro_batch_tokens: MicroBatchTokens = 16384
    packing: Annotated[
        Packing,
        Option(
            "Put sequences end to end in one row instead of padding them, and compute a shared prompt only once; same "
            "results up to rounding. auto: on a CPU, if it saves enough and the model allows it.",
            "execution",
        ),
    ] = Packing.auto
    compile: Annotated[
        bool,
        Option(
            "Compile the model's layers (torch.compile): fewer, larger kernels and less memory, after some 10 to 60 "
            "seconds; same results up to rounding. Needs a C++ compiler.",
            "execution",
        ),
    ] = False

    def placement(self) -> Placement:
        """The device and precision to compute with. Also sets the number of CPU threads of this process."""
        set_threads(self.threads)
        return resolve_placement(self.device, self.resolved_dtype(), self.packing.value, compiled=self.compile)


@dataclass(frozen=True, kw_only=True)
class RankOptions(Options):
    """Over how many processes a model is spread."""

    nproc: Annotated[
        str | None,
        Option(
            "Spread the model and the work over this many processes of this machine, a GPU each (FSDP); auto: one for "
            "each GPU. Under torchrun or srun leave it out.  [default: compute in this process]",
            "call",
            metavar="<N|auto>",
            check=nproc_problem,
        ),
    ] = None

    def execution(self) -> dict[str, Json]:
        """Adds the number of ranks where one was given, so that records are as before where not."""
        return {**super().execution(), **({} if self.nproc is None else {"nproc": self.nproc})}


Prm = Annotated[str, Option("The process reward model, a causal LM.", "execution", metavar="DIR|HUB_ID")]
Ref = Annotated[
    str,
    Option(
        "The reference model, usually the SFT model. rollout: use the sampling policy's own log-probabilities; shards: "
        "use the ref_logprobs stored in the shards.",
        "call",  # `PrmOptions` records the kind of reference in the recipe, and its name in the provenance
        metavar="DIR|HUB_ID|rollout|shards",
    ),
]
Beta = Annotated[float, Option("Scale of the reward, which is beta times the log-ratio.", min=0.0)]
Critic = Annotated[str, Option("The critic, or any causal LM to start one from.", "execution", metavar="DIR|HUB_ID")]


@dataclass(frozen=True, kw_only=True)
class PrmOptions(Options):
    """A process reward model and its reference."""

    prm: Prm
    ref: Ref

    def recipe(self) -> dict[str, Json]:
        """Adds the kind of reference: rollout, shards, or a model, whose fingerprint is recorded separately."""
        from primecli.shards.rollouts import STORED_REFERENCES

        return {**super().recipe(), "ref": self.ref if self.ref in STORED_REFERENCES else "model"}

    def execution(self) -> dict[str, Json]:
        """Adds the reference as the user named it."""
        return {**super().execution(), "ref_model": self.ref}
