from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from primecli.core.ragged import micro_batches, packed_batches, pad, response_mask, unpad

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


rows_lists = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=1, max_size=30)


@given(rows_lists, st.lists(st.integers(1, 30), min_size=5, max_size=5), st.integers(1, 100))
def test_packed_batches_take_each_row_once_and_count_a_prompt_once(
    rows: list[tuple[int, int]], prompt_lengths: list[int], budget: int
) -> None:
    prompts = [prompt for prompt, _ in rows]
    of_row = [prompt_lengths[prompt] for prompt in prompts]
    responses = [response for _, response in rows]
    groups = list(packed_batches(prompts, of_row, responses, budget))
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        tokens = sum(responses[row] for row in group) + sum(
            prompt_lengths[prompt] for prompt in {prompts[row] for row in group}
        )
        assert len(group) == 1 or tokens <= budget
    longest = max(one + other for one, other in zip(of_row, responses, strict=True))
    assert longest in [of_row[row] + responses[row] for row in groups[0]]
