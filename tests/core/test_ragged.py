from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from primecli.core.ragged import micro_batches, pad, response_mask, unpad

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(lengths_lists)
def test_unpad_undoes_pad(lengths: list[int]) -> None:
    sizes = torch.tensor(lengths)
    values = torch.arange(int(sizes.sum()))
    padded = pad(values, sizes, fill=-1)
    assert torch.equal(unpad(padded, response_mask(sizes)), values)
    assert (padded[~response_mask(sizes)] == -1).all()


@given(lengths_lists, st.integers(1, 100))
def test_micro_batches_take_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(micro_batches(lengths, budget))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[row] for row in group) * len(group) <= budget
    assert max(lengths) in [lengths[row] for row in groups[0]]
