"""How ranks on CPUs exchange layers: each sends every other one its rows, directly.

gloo sums a gradient up whole on every rank before each takes its rows of it, and exchanges layers by threads of its own
while the rank computes, which on a CPU takes the time from the computation. These wait instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule


class _OnCpu:
    """The memory that FSDP exchanges in."""

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this size."""
        return torch.empty(*size, dtype=dtype, device=device)


class Gather(_OnCpu):
    """Every rank's rows, on every rank."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        """Fills `output_tensor`, whose part of this rank FSDP has made `input_tensor`: it is there already."""
        parts = output_tensor.chunk(group.size())
        _exchange(group, dict.fromkeys(range(group.size()), input_tensor), dict(enumerate(parts)))


class ReduceScatter(_OnCpu):
    """On each rank, its rows of the sum over the ranks, added up in the order of the ranks."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        """Fills `output_tensor` with this rank's part of the sum of all `input_tensor`."""
        mine = group.rank()
        parts = dict(enumerate(input_tensor.chunk(group.size())))
        others = {rank: torch.empty_like(output_tensor) for rank in parts if rank != mine}
        _exchange(group, parts, others)
        output_tensor.copy_(parts[0] if mine == 0 else others[0])
        for rank in range(1, group.size()):
            output_tensor.add_(parts[rank] if rank == mine else others[rank])


def exchange_directly(module: FSDPModule) -> None:
    """Has an FSDP module exchange its parameters and gradients so, where this torch can be told.

    Nor does it gather the layer before it in advance, which would gain no time here and take the memory of a layer.
    """
    module.set_modules_to_backward_prefetch([module])  # which is gathered by then: nothing is left to do
    if hasattr(module, "set_custom_all_gather"):
        module.set_custom_all_gather(Gather())  # type: ignore[arg-type]
        module.set_custom_reduce_scatter(ReduceScatter())  # type: ignore[arg-type]


def _exchange(group: dist.ProcessGroup, sent: dict[int, Tensor], received: dict[int, Tensor]) -> None:
    """Sends a tensor to each other rank of a group and receives one from each, by rank."""
    mine = group.rank()
    operations = []
    for rank in received:
        if rank != mine:
            peer = dist.get_global_rank(group, rank)
            operations.append(dist.P2POp(dist.irecv, received[rank], peer, group))
            operations.append(dist.P2POp(dist.isend, sent[rank], peer, group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
