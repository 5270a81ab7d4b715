from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from primecli.models.attention import Segment, attend


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("mask", ["none", "rows", "heads"])
def test_heads_that_share_keys_see_what_they_see_with_copies(tokens: int, mask: str) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 6, tokens, 4, generator=generator)
    key, value = (torch.randn(3, 2, 9, 4, generator=generator) for _ in range(2))
    seen = {"none": None, "rows": torch.rand(3, 1, tokens, 9) > 0.3, "heads": torch.rand(3, 6, tokens, 9) > 0.3}[mask]
    if seen is not None:
        seen[..., 0] = True
    module = torch.nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    expected, _ = sdpa_attention_forward(module, query, key, value, seen, scaling=0.4)
    found, _ = attend(module, query, key, value, seen, scaling=0.4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "named", [{"sliding_window": 4}, {"softcap": 30.0}, {"dropout": 0.1}, {"is_causal": False}, {"mask": True}, {}]
)
def test_packed_rows_refuse_attention_of_another_kind_rather_than_leave_it_out(named: dict[str, Any]) -> None:
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3 if named else 5, 4)  # none: keys of a cache
    mask = torch.ones(1, 1, 3, 3) if named.pop("mask", False) else None
    with pytest.raises(TypeError, match="Linear asks for attention with"):
        attend(torch.nn.Linear(1, 1), query, key, key, mask, segments=[Segment(3)], **named)


def test_rows_without_segments_are_as_with_sdpa() -> None:
    query, key = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4)
    module = torch.nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    for extras in ({}, {"is_causal": False}, {"dropout": 0.0}):
        expected, _ = sdpa_attention_forward(module, query, key, key, None, **extras)
        found, _ = attend(module, query, key, key, None, **extras)
        assert torch.equal(found, expected)
