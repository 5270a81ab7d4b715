"""AdamW as one fused kernel; its moments persist between processes, and may be kept in CPU memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.models import checkpoints

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BETAS = (0.9, 0.999)  # torch's defaults
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names; checkpoints use them too


class AdamW:
    """AdamW over float32 parameters. Its moments exist from the start; they are 0 until `load`.

    parameters: what it trains, by name.
    weight_decay: as in torch.optim.AdamW.
    steps: optimizer steps taken before, by earlier processes.
    offload: keeps the moments in CPU memory, and moves those of one parameter after the other to its device for the
        step. The kernel is the same, and so is every bit of the result.
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
        all_parameters = list(self.parameters.values())
        chunks = [[parameter] for parameter in all_parameters] if offload else [all_parameters]
        self._optimizers = [
            torch.optim.AdamW(chunk, betas=BETAS, weight_decay=weight_decay, fused=True) for chunk in chunks
        ]
        self._states: dict[torch.nn.Parameter, dict[str, Tensor]] = {}
        for optimizer in self._optimizers:
            for parameter in optimizer.param_groups[0]["params"]:
                device = torch.device("cpu") if offload else parameter.device
                self._states[parameter] = optimizer.state[parameter] = {
                    "step": torch.tensor(float(steps), device=parameter.device),  # where the fused kernel needs it
                    **{moment: torch.zeros_like(parameter, device=device) for moment in MOMENTS},
                }

    def load(self, path: Path, read: Callable[[str, Tensor], Tensor] | None = None) -> None:
        """Loads the moments from a checkpoint's file. Raises InputError if they do not fit the parameters.

        read: returns a moment, by its name in the file and the parameter; by default the whole tensor of that name.
        """
        if read is None:
            saved = checkpoints.load_tensors(path)

            def read(name: str, parameter: Tensor) -> Tensor:
                return checkpoints.fitting_tensor(saved, name, parameter, path)

        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                self._states[parameter][moment].copy_(read(f"{name}.{moment}", parameter))

    def tensors(self) -> dict[str, Tensor]:
        """The moments, by the names under which a checkpoint stores them, such as lm_head.weight.exp_avg."""
        return {
            f"{name}.{moment}": self._states[parameter][moment].contiguous()
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, lr: float) -> None:
        """Takes one step with this learning rate. Parameters without a gradient do not change."""
        for optimizer in self._optimizers:
            (group,) = optimizer.param_groups
            group["lr"] = lr
            with self._moments_on_device(group["params"][0]) if self.offload else contextlib.nullcontext():
                optimizer.step()

    @contextlib.contextmanager
    def _moments_on_device(self, parameter: torch.nn.Parameter) -> Iterator[None]:
        """Copies the moments of a parameter to its device for a step, and the new ones back afterwards."""
        state = self._states[parameter]
        offloaded = {moment: state[moment] for moment in MOMENTS}
        state.update({moment: tensor.to(parameter.device, copy=True) for moment, tensor in offloaded.items()})
        yield
        for moment, tensor in offloaded.items():
            tensor.copy_(state[moment])
        state.update(offloaded)
