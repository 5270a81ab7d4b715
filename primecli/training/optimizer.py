"""AdamW in one fused kernel, with moments that persist between processes and may live in CPU memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.models import checkpoints

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BETAS = (0.9, 0.999)
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """AdamW over some float32 parameters, after `steps` steps; its moments are there from the start, 0 until `load`.

    parameters: by name. offload: the moments are kept in CPU memory, and those of one parameter at a time join it for
    its step. The kernel is the same then, and so is every bit of the result.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        weight_decay: float,
        steps: int = 0,
        offload: bool = False,
    ) -> None:
        import torch

        self.parameters = dict(parameters)
        self.offload = offload
        everything = list(self.parameters.values())
        together = [[parameter] for parameter in everything] if offload else [everything]
        self._optimizers = [
            torch.optim.AdamW(some, betas=BETAS, weight_decay=weight_decay, fused=True) for some in together
        ]
        self._states: dict[torch.nn.Parameter, dict[str, Tensor]] = {}
        for optimizer in self._optimizers:
            for parameter in optimizer.param_groups[0]["params"]:
                home = torch.device("cpu") if offload else parameter.device
                self._states[parameter] = optimizer.state[parameter] = {
                    "step": torch.tensor(float(steps), device=parameter.device),  # where the fused kernel wants it
                    **{moment: torch.zeros_like(parameter, device=home) for moment in MOMENTS},
                }

    def load(self, path: Path) -> None:
        """Puts the moments of a checkpoint's file back. Raises InputError where they do not fit."""
        saved = checkpoints.load_tensors(path)
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                stored = checkpoints.fitting_tensor(saved, f"{name}.{moment}", parameter, path)
                self._states[parameter][moment].copy_(stored)

    def tensors(self) -> dict[str, Tensor]:
        """The moments by the names under which a checkpoint stores them."""
        return {
            f"{name}.{moment}": self._states[parameter][moment].contiguous()
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }

    def zero_grad(self) -> None:
        """Gives the gradients' memory back."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, lr: float) -> None:
        """One step at this learning rate. A parameter without a gradient is left as it is."""
        for optimizer in self._optimizers:
            (group,) = optimizer.param_groups
            group["lr"] = lr
            with self._moments_beside(group["params"][0]) if self.offload else contextlib.nullcontext():
                optimizer.step()

    @contextlib.contextmanager
    def _moments_beside(self, parameter: torch.nn.Parameter) -> Iterator[None]:
        """The moments on the parameter's device; what the step makes of them goes back to where they live."""
        state = self._states[parameter]
        kept = {moment: state[moment] for moment in MOMENTS}
        state.update({moment: tensor.to(parameter.device, copy=True) for moment, tensor in kept.items()})
        yield
        for moment, tensor in kept.items():
            tensor.copy_(state[moment])
        state.update(kept)
