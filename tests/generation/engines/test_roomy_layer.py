from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from primecli.generation.engines.roomy_layer import LEAST_ROOM, RoomyLayer


def states(tokens: int, *, rows: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, 2, tokens, 4, generator=generator) for _ in range(2))  # type: ignore[return-value]


def test_a_layer_with_room_holds_what_transformers_own_holds() -> None:
    theirs, ours = DynamicLayer(), RoomyLayer(*states(7))  # type: ignore[no-untyped-call]
    theirs.update(*states(7))
    for step in range(LEAST_ROOM + 20):
        if step in (3, LEAST_ROOM + 3):
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor([0, 2] if step == 3 else [1]))
        new = states(1 + step % 2, rows=len(ours.keys), seed=step)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def test_steps_write_into_the_same_memory() -> None:
    layer = RoomyLayer(*states(7))
    addresses = {layer.update(*states(1, seed=step))[0].data_ptr() for step in range(LEAST_ROOM)}
    assert len(addresses) == 1
