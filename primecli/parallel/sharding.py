"""Models whose parameters are spread over the ranks: FSDP2's `fully_shard`, one group for each decoder layer.

Each rank holds some of the rows of every matrix: weights, gradients and the optimizer's moments. A layer's whole
matrices exist only while it computes. Vectors, such as the weights of norms, are small: every rank holds them whole.

What is computed is what one process computes. Under autocast, which is how bfloat16 is computed with float32 weights,
a linear layer rounds its weight to bfloat16 anyway, so the layers' matrices travel in bfloat16; the embedding and the
head stay float32, as in one process. Gradients are added up in float32, and never divided by the number of ranks: a
loss has the denominator of its whole mini-batch already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from primecli.parallel.exchanges import exchange_directly
from primecli.parallel.ranks import Ranks

Result = TypeVar("Result")

ATTRIBUTE = "primecli_sharded"  # of a model, with what is known of its sharding


class Window(NamedTuple):
    """The rows of a tensor that a rank holds: from `start` up to `stop`."""

    start: int
    stop: int


class _Whole(nn.Module):
    """The outermost module that FSDP knows: whatever is computed inside it sees whole embeddings and heads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns."""
        return compute()


@dataclass(frozen=True, slots=True)
class Sharded:
    """How a model is spread over the ranks.

    ranks: those that hold it. whole: runs a computation with the parameters outside of the layers gathered.
    """

    ranks: Ranks
    whole: nn.Module


def sharded(model: Any) -> Sharded | None:
    """How a model is spread over the ranks; None if this process has all of it."""
    return getattr(model, ATTRIBUTE, None)


def computing(model: Any, compute: Callable[[], Result]) -> Result:
    """The result of a computation that uses the model's parameters, which are gathered for it if they are spread.

    Every rank has to call it, in the same order. compute: its result's tensors are what may be differentiated.
    """
    found = sharded(model)
    return compute() if found is None else found.whole(compute)


def shard(model: Any, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> None:
    """Spreads a model's parameters, which may be on the meta device, over the ranks; their values are undefined then.

    dtype: in which products are computed.
    """
    mesh = init_device_mesh(device.type, (ranks.world,))
    parts = layers(model)
    replicated = _replicated(model, parts)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    half = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in parts:
        policy = plain if dtype == torch.float32 else half
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=replicated)
    whole = _Whole(model)
    # gathered again for the backward pass: what stays gathered would not see the weights that a step has changed
    fully_shard(whole, mesh=mesh, mp_policy=plain, ignored_params=replicated, reshard_after_forward=True)
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
            if device.type == "cpu":
                exchange_directly(module)
    _allocate(model, replicated, device)
    setattr(model, ATTRIBUTE, Sharded(ranks, whole))
    with torch.no_grad():
        whole(lambda: None)  # FSDP settles where the shards lie when it is first called


def _allocate(model: nn.Module, replicated: set[nn.Parameter], device: torch.device) -> None:
    """Gives the parameters memory on the device, and moves the buffers there, which have numbers already."""
    buffers = {name: buffer for name, buffer in model.named_buffers()}  # noqa: C416
    names: dict[nn.Parameter, list[str]] = {}  # of each replicated parameter, since layers may share one
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in replicated:
            names.setdefault(parameter, []).append(name)
    model.to_empty(device=device)
    for name, buffer in buffers.items():
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent)._buffers[last] = buffer.to(device)
    for first, *others in names.values():
        for name in others:  # to_empty has made a parameter of its own of each
            parent, _, last = name.rpartition(".")
            model.get_submodule(parent)._parameters[last] = model.get_parameter(first)


def spread_gradient(model: Any, *, now: bool) -> None:
    """Whether the next backward pass adds up the gradient over the ranks, or keeps it for one that does.

    A single rank keeps it until the last micro-batch, so that its sums are in the order of a process without ranks.
    More ranks add it up each time, because each would otherwise hold the gradient of the whole model.
    """
    found = sharded(model)
    if found is not None and found.ranks.world == 1:
        found.whole.set_requires_gradient_sync(now)  # type: ignore[operator]


def layers(model: Any) -> list[nn.Module]:
    """The decoder layers of a transformers model: the outermost modules of the kinds that it says not to split.

    Layers that share weights, as in Zamba, are left out: FSDP wants all that share one in the same group, and the
    outermost group is that.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module not in inside and _kind(module) in kinds:
            found.append(module)
            inside.update(module.modules())
    uses = Counter(parameter for layer in found for parameter in layer.parameters())
    return [layer for layer in found if all(uses[parameter] == 1 for parameter in layer.parameters())]


def _kind(module: nn.Module) -> str:
    """The name of a module's class, without the one that FSDP puts over it."""
    return next(kind.__name__ for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def _replicated(model: Any, parts: Sequence[nn.Module]) -> set[nn.Parameter]:
    """The parameters that every rank holds whole: vectors, and the layers' matrices that are no layer's to multiply by.

    The second, such as the weights of a router or the decay of a state, would be rounded with the layer's others.
    """
    linear = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    inside = {parameter for layer in parts for parameter in layer.parameters() if parameter.ndim == 2}
    return {parameter for parameter in model.parameters() if parameter.ndim < 2} | (inside - linear)


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a parameter or gradient; the tensor itself if it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_spread(tensor: Tensor) -> bool:
    """Whether the ranks have different rows of a parameter; if not, each has all of them."""
    return isinstance(tensor, DTensor)


def window(tensor: Tensor, ranks: Ranks) -> Window:
    """The rows of a parameter that this rank holds; all of them if it is not spread."""
    rows = len(tensor) if tensor.ndim else 1
    if not isinstance(tensor, DTensor):
        return Window(0, rows)
    height = -(-rows // ranks.world)
    return Window(min(ranks.rank * height, rows), min((ranks.rank + 1) * height, rows))


class Shares:
    """This rank's shares of trained parameters, as parameters of their own that an optimizer can step.

    parameters: by name; each has the memory of the model's.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        self.ranks = ranks
        self._of_model = dict(trained)
        self.parameters = {name: nn.Parameter(local(parameter.detach())) for name, parameter in trained.items()}

    def take_gradients(self) -> None:
        """Gives each share its gradient, summed over the ranks, and takes it from the model's parameter."""
        replicated = [parameter for parameter in self._of_model.values() if not isinstance(parameter, DTensor)]
        _sum_over_ranks([parameter.grad for parameter in replicated if parameter.grad is not None])
        for name, parameter in self._of_model.items():
            self.parameters[name].grad = None if parameter.grad is None else local(parameter.grad)
            parameter.grad = None

    def clip_gradient(self, limit: float) -> float:
        """The norm of the whole gradient; scales it down to `limit` where it is larger.

        The norm is summed up in float64 where there is more than one rank, so that it hardly depends on their number.
        One rank computes it as torch's clip_grad_norm_ does.
        """
        gradients = [share.grad for share in self.parameters.values() if share.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if self.ranks.world == 1 else self._norm().float()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale.to(gradients[0].device))
        return float(norm)

    def _norm(self) -> Tensor:
        """() float64: the norm over all ranks. What every rank holds counts once."""
        spread, replicated = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for name, share in self.parameters.items():
            if share.grad is not None:
                square = share.grad.double().square().sum().cpu()
                if isinstance(self._of_model[name], DTensor):
                    spread += square
                else:
                    replicated += square
        total = torch.from_numpy(self.ranks.total(spread.numpy().reshape(1)))[0]
        return (total + replicated).sqrt()


def _sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over the ranks, in one exchange."""
    tensors = list(tensors)
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, piece in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))
