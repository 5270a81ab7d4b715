"""AdamW as one fused kernel; its moments persist between processes, and may be kept in CPU memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.models import checkpoints, lora, mapped

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from primecli.models.checkpoints import TrainerState
    from primecli.training.options import TrainingOptions

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's defaults
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names; checkpoints use them too


class AdamW:
    """AdamW over float32 parameters.

    parameters: what it trains, by name.
    weight_decay, betas, eps: as in torch.optim.AdamW.
    undecayed: names of the parameters that weight decay leaves out.
    steps: optimizer steps taken before, by earlier processes.
    own_steps: of those, the ones in which a parameter had a gradient, by name, where that was not in all of them.
    offload: keeps the moments in CPU memory, and moves those of one parameter after the other to its device for the
        step. The kernel is the same, and so is every bit of the result.
    resumes: its moments come by `load`, before the first step; otherwise they are 0.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        weight_decay: float,
        betas: tuple[float, float] = BETAS,
        eps: float = EPSILON,
        undecayed: Collection[str] = (),
        steps: int = 0,
        own_steps: Mapping[str, int] | None = None,
        offload: bool = False,
        resumes: bool = False,
    ) -> None:
        import torch

        self.parameters = dict(parameters)
        self.offload = offload
        self._untouched = False  # whether moments are mapped that no step has written to
        self._optimizers: list[torch.optim.AdamW] = []
        self._states: dict[torch.nn.Parameter, dict[str, Tensor]] = {}
        for names, decay in self._chunks(weight_decay, undecayed):
            chunk = [self.parameters[name] for name in names]
            optimizer = torch.optim.AdamW(chunk, betas=betas, eps=eps, weight_decay=decay, fused=True)
            self._optimizers.append(optimizer)
            for name, parameter in zip(names, chunk, strict=True):
                device = torch.device("cpu") if offload else parameter.device
                taken = (own_steps or {}).get(name, steps)
                self._states[parameter] = optimizer.state[parameter] = {
                    "step": torch.tensor(float(taken), device=parameter.device),  # where the fused kernel needs it
                    **({} if resumes else {m: torch.zeros_like(parameter, device=device) for m in MOMENTS}),
                }

    def _chunks(self, weight_decay: float, undecayed: Collection[str]) -> list[tuple[list[str], float]]:
        """The names of the parameters that one optimizer steps together, with their weight decay."""
        by_decay: dict[float, list[str]] = {}
        for name in self.parameters:
            by_decay.setdefault(0.0 if name in undecayed else weight_decay, []).append(name)
        if self.offload:
            return [([name], decay) for decay, names in by_decay.items() for name in names]
        return [(names, decay) for decay, names in by_decay.items()]

    def load(self, path: Path, read: Callable[[str, Tensor], Tensor] | None = None) -> None:
        """Loads the moments from a checkpoint's file. Raises InputError if they do not fit the parameters.

        Those that stay on the CPU are mapped: the disk is read while the first mini-batch is computed. read: returns a
        moment, by its name in the file and the parameter; by default the whole tensor of that name.
        """
        import torch

        if read is None:
            saved = checkpoints.load_tensors(path)

            def read(name: str, parameter: Tensor) -> Tensor:
                return checkpoints.fitting_tensor(saved, name, parameter, path)

        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                device = torch.device("cpu") if self.offload else parameter.device
                self._states[parameter][moment] = read(f"{name}.{moment}", parameter).to(device, parameter.dtype)
        mapped.read_ahead(self.tensors().values())
        self._untouched = True

    def tensors(self) -> dict[str, Tensor]:
        """The moments, by the names under which a checkpoint stores them, such as lm_head.weight.exp_avg."""
        return {
            f"{name}.{moment}": self._states[parameter][moment].contiguous()
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }

    def own_steps(self, steps: int) -> dict[str, int]:
        """The number of steps in which a parameter had a gradient, by name, where that is not `steps`, all of them.

        AdamW's bias correction goes by this number, so a checkpoint keeps it.
        """
        import torch

        counts = torch.stack([self._states[parameter]["step"] for parameter in self.parameters.values()]).tolist()
        return {name: int(count) for name, count in zip(self.parameters, counts, strict=True) if count != steps}

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, lr: float) -> None:
        """Takes one step with this learning rate. Parameters without a gradient do not change."""
        if self._untouched:
            mapped.copy_pages(self.tensors().values())
            self._untouched = False
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


def adamw(
    parameters: Mapping[str, torch.nn.Parameter], model: Any, options: TrainingOptions, state: TrainerState
) -> AdamW:
    """The optimizer that the options ask for, with the steps of a checkpoint but not yet its moments.

    parameters: what it trains, by their names in a checkpoint. model: which they belong to. state: of the checkpoint.
    """
    return AdamW(
        parameters,
        weight_decay=options.weight_decay,
        betas=options.adam_betas,
        eps=options.adam_eps,
        undecayed=biases_and_norms(model) if options.no_decay_norms else (),
        steps=state.step,
        own_steps=state.own_steps,
        offload=options.offload_optimizer,
        resumes=state.has_moments,
    )


NORMS = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""What the name of a bias, or of a norm's weight, contains, in lower case; transformers' Trainer has the same."""


def biases_and_norms(model: Any) -> set[str]:
    """The names, in a checkpoint, of the parameters that transformers' Trainer leaves out of weight decay."""
    import torch

    layer_norms = {
        parameter
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
        for parameter in module.parameters(recurse=False)
    }
    return {
        name
        for name, parameter in lora.parameters(model).items()
        if NORMS.search(name.lower()) or parameter in layer_norms
    }
