"""The options of every stage that computes with a model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from primecli.files import Json
from primecli.models.device import device_problem, resolve_dtype, resolve_placement, set_threads
from primecli.options import Option, Options

if TYPE_CHECKING:
    from primecli.models.device import Placement


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


MicroBatchTokens = Annotated[
    int,
    Option(
        "Tokens computed at a time, padding included: bounds memory, changes no result beyond rounding.",
        "execution",
        min=1,
    ),
]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Where and in what precision a model computes.

    The precision that `auto` stands for is part of the result, where it came from is not.
    """

    device: Annotated[
        str,
        Option(
            "Where to compute; auto is the GPU where there is one, cuda:1 the second of several.",
            "execution",
            metavar="<auto|cpu|cuda|cuda:N>",
            check=device_problem,
        ),
    ] = "auto"
    dtype: Annotated[Dtype, Option("Precision of products; auto is bfloat16 on a GPU, float32 on the CPU.", "call")] = (
        Dtype.auto
    )
    threads: Annotated[
        int | None, Option("CPU threads.  [default: OMP_NUM_THREADS, or all cores]", "execution", min=1)
    ] = None

    def resolved_dtype(self) -> str:
        """float32 or bfloat16."""
        return resolve_dtype(self.device, self.dtype.value)

    def recipe(self) -> dict[str, Json]:
        """With the precision that `auto` stands for here."""
        return {**super().recipe(), "dtype": self.resolved_dtype()}


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(DeviceOptions):
    """How sequences are scored: where, in what precision, and in what batches."""

    micro_batch_tokens: MicroBatchTokens = 16384
    packing: Annotated[
        Packing,
        Option(
            "Sequences end to end in one row, a prompt that several share computed once, instead of padding; equal to "
            "rounding. auto: on the CPU, where it saves enough and the model allows it.",
            "execution",
        ),
    ] = Packing.auto

    def placement(self) -> Placement:
        """The device and precision to compute with; sets the number of this process's threads."""
        set_threads(self.threads)
        return resolve_placement(self.device, self.resolved_dtype(), self.packing.value)


Prm = Annotated[str, Option("The process reward model, a causal LM.", "execution", metavar="DIR|HUB_ID")]
Ref = Annotated[
    str,
    Option(
        "The reference, usually the SFT model; rollout: the sampling policy's own log-probabilities; shards: the "
        "ref_logprobs that are there already.",
        "call",  # `PrmOptions` records its kind in the recipe, its name in the provenance
        metavar="DIR|HUB_ID|rollout|shards",
    ),
]
Beta = Annotated[float, Option("Scale of the log-ratio that is the reward.", min=0.0)]
Critic = Annotated[str, Option("The critic, or any causal LM to start one from.", "execution", metavar="DIR|HUB_ID")]


@dataclass(frozen=True, kw_only=True)
class PrmOptions(Options):
    """A process reward model beside its reference."""

    prm: Prm
    ref: Ref
    beta: Beta = 0.05

    def recipe(self) -> dict[str, Json]:
        """With the kind of reference; which model it is, its fingerprint says."""
        from primecli.shards.rollouts import STORED_REFERENCES

        return {**super().recipe(), "ref": self.ref if self.ref in STORED_REFERENCES else "model"}

    def execution(self) -> dict[str, Json]:
        """With the reference as it was named."""
        return {**super().execution(), "ref_model": self.ref}
