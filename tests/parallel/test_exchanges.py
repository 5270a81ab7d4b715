"""What ranks on CPUs exchange is what torch's own collectives would."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from primecli.parallel.exchanges import Gather, ReduceScatter

WORLD = 3


def _exchange(rank: int, path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=WORLD)
    group = dist.group.WORLD
    assert group is not None
    values = torch.randn(WORLD, 3 * 5, generator=torch.Generator().manual_seed(0))
    gather, total = Gather(), ReduceScatter()
    gathered = gather.allocate((values.numel(),), dtype=torch.float32, device=torch.device("cpu"))
    gathered.chunk(WORLD)[rank].copy_(values[rank])
    gather(gathered, gathered.chunk(WORLD)[rank], group)
    assert torch.equal(gathered.view(WORLD, -1), values)
    own = torch.empty(5)
    total(own, values[rank].clone(), group, dist.ReduceOp.SUM)
    expected = ((values[0] + values[1]) + values[2]).chunk(WORLD)[rank]
    assert torch.equal(own, expected)
    dist.barrier()
    dist.destroy_process_group()


def test_three_ranks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_exchange, args=(rank, tmp_path)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0] * WORLD
