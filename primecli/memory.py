"""What an update can do to need less memory: none of it changes the result beyond rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from primecli.errors import PrimecliError
from primecli.files import Json


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """gradient_checkpointing: the backward pass computes each layer's activations again, rather than have them kept."""

    gradient_checkpointing: bool = False

    def as_json(self) -> dict[str, Json]:
        """The options, for a summary: they belong to a run, not to its result."""
        return asdict(self)


def recompute_activations(model: Any) -> None:
    """Keeps of each layer its input alone; the backward pass makes the rest again.

    Raises PrimecliError for a model whose layers are not known.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise PrimecliError(
            f"{type(model).__name__} has no layers that transformers can checkpoint",
            "leave --gradient-checkpointing out",
        )
    # transformers' own switch works in training mode alone, and that would switch dropout on
    for layer in layers:
        layer.forward = _recomputing(layer.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch
    from torch.utils.checkpoint import checkpoint

    def recomputing(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        # without dropout nothing draws random numbers, so that there is no state of them to keep
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    return recomputing
