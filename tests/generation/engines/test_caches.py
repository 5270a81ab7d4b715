from __future__ import annotations

from typing import Any

import pytest
import torch

from primecli.generation.engines.caches import Carried
from primecli.generation.engines.layouts import learn_layout
from primecli.generation.engines.state_tensors import CacheError
from primecli.models.device import resolve_placement
from tests.generation.engines.toy_models import Blocks, OneForAll
from tests.models.architectures import build

FLOAT32 = resolve_placement("cpu", "float32")
# The kinds of state: keys, a window of them, convolution and recurrence beside attention and in one layer with it,
# recurrence alone, in a list of the model's own, in its modules, in tuples, in a class of the model's own.
KINDS = ["Mistral", "Jamba", "Falcon-H1", "Mamba 2", "MiniMax", "RecurrentGemma", "xLSTM"]


def after(model: Any, layout: Any, rows: list[list[int]]) -> tuple[Carried, Any]:
    """The state after rows of one length, and the logits of the next token."""
    state = Carried(model, layout)
    ids = torch.tensor(rows)
    positions = torch.arange(ids.shape[1]).repeat(len(rows), 1)
    return state, state.run(model, ids, torch.ones_like(ids), positions)


@pytest.mark.parametrize("name", KINDS)
def test_rows_go_where_they_are_selected(name: str) -> None:
    model = build(name)
    rows = [[3, 4, 5, 6, 7, 8, 9], [13, 14, 15, 16, 17, 18, 19], [23, 24, 25, 26, 27, 28, 29]]
    with torch.inference_mode():
        layout = learn_layout(model, FLOAT32)
        state, logits = after(model, layout, rows)
        for chosen in ([2, 0, 0, 1], [3, 1], [1]):  # each of those that were chosen before
            state.select(torch.tensor(chosen))
            state.give_room()
            rows, logits = [rows[row] for row in chosen], logits[chosen]
            tokens = [[30 + place] for place in range(len(rows))]
            rows = [[*row, *token] for row, token in zip(rows, tokens, strict=True)]
            positions = torch.full((len(rows), 1), len(rows[0]) - 1)
            mask = torch.ones(len(rows), len(rows[0]), dtype=torch.int64)
            logits = state.run(model, torch.tensor(tokens), mask, positions)
            expected = torch.cat([model(input_ids=torch.tensor([row]), use_cache=False).logits[:, -1] for row in rows])
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Mistral", "Jamba", "Falcon-H1", "RecurrentGemma"])
def test_states_of_prompts_of_different_lengths_are_joined(name: str) -> None:
    model = build(name)
    rows = [[3, 4, 5, 6, 7, 8, 9], [13, 14, 15], [23, 24, 25], [33]]
    with torch.inference_mode():
        layout = learn_layout(model, FLOAT32)
        state, _ = after(model, layout, rows[:1])
        state.join([after(model, layout, group)[0] for group in (rows[1:3], rows[3:])])
        ids = torch.tensor([[40], [41], [42], [43]])
        mask = torch.tensor([[0] * (7 - len(row)) + [1] * len(row) + [1] for row in rows])
        logits = state.run(model, ids, mask, torch.tensor([[len(row)] for row in rows]))
        for row, token, found in zip(rows, ids.tolist(), logits, strict=True):
            expected = model(input_ids=torch.tensor([[*row, *token]]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_a_layout_names_the_dimension_of_the_rows() -> None:
    with torch.inference_mode():
        layout = learn_layout(build("RWKV 4"), FLOAT32)
    assert layout.cache_name == "state"
    assert layout.dims == {(0, number): 0 for number in range(5)}
    with torch.inference_mode():
        layout = learn_layout(build("RecurrentGemma"), FLOAT32)
    assert not layout.makes_cache
    assert [name for _, name, _ in layout.held] == ["conv1d_state", "recurrent_states"]
    assert layout.held[0][2] is None  # before a prompt
    assert (layout.dims or {})[1, 0] == 0


def test_a_layout_is_learned_from_prompts_that_fill_the_state() -> None:
    with torch.inference_mode():
        layout = learn_layout(Blocks().eval(), FLOAT32)
    assert layout.tokens == 40
    assert layout.dims == {(0, "rest"): 0, (0, "blocks"): 0}


def test_rows_that_cannot_be_told_apart_are_not_selected() -> None:
    model = OneForAll().eval()
    with torch.inference_mode():
        layout = learn_layout(model, FLOAT32)
        state, _ = after(model, layout, [[1, 2], [3, 4]])
        with pytest.raises(CacheError, match="the rows of sum cannot be told apart"):
            state.select(torch.tensor([0]))


def test_what_stands_for_a_part_of_the_tokens_is_not_joined() -> None:
    model = Blocks().eval()
    with torch.inference_mode():
        layout = learn_layout(model, FLOAT32)
        state, _ = after(model, layout, [[1] * 30])
        with pytest.raises(CacheError, match="it holds something for 2 of 18 tokens"):
            state.join([after(model, layout, [[2] * 18])[0]])
