"""AdamW in one fused kernel, with moments that persist between processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from primecli import checkpoints

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BETAS = (0.9, 0.999)
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """AdamW over some float32 parameters, after `steps` steps; its moments are there from the start.

    parameters: by name. The moments are 0 until `load`.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], *, weight_decay: float, steps: int = 0) -> None:
        import torch

        self.parameters = dict(parameters)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(), betas=BETAS, weight_decay=weight_decay, fused=True
        )
        for parameter in self.parameters.values():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(steps), device=parameter.device),  # where the fused kernel wants it
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }

    def load(self, path: Path) -> None:
        """Puts the moments of a checkpoint's file back. Raises InputError where they do not fit."""
        saved = checkpoints.load_tensors(path)
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                stored = checkpoints.fitting_tensor(saved, f"{name}.{moment}", parameter, path)
                self._optimizer.state[parameter][moment].copy_(stored)

    def tensors(self) -> dict[str, Tensor]:
        """The moments by the names under which a checkpoint stores them."""
        return {
            f"{name}.{moment}": self._optimizer.state[parameter][moment].contiguous()
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }

    def zero_grad(self) -> None:
        """Gives the gradients' memory back."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, lr: float) -> None:
        """One step at this learning rate. A parameter without a gradient is left as it is."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
