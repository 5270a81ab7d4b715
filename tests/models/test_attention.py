from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from primecli.models import attention
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


def test_under_autocast_the_mask_for_a_gpu_gives_what_that_of_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 11, 8, generator=generator) for heads in (4, 2))
    value = torch.randn(1, 2, 11, 8, generator=generator).bfloat16()  # queries and keys are float32 after rotary ones
    segments = [Segment(4), Segment(3, prefix=0), Segment(4, prefix=0)]

    def attended() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend(torch.nn.Identity(), query, key, value, None, segments=segments)[0]

    expected = attended()
    assert expected.dtype == torch.bfloat16
    monkeypatch.setattr(attention, "_needs_dense_mask", lambda query: False)
    torch.testing.assert_close(attended(), expected, atol=0, rtol=0)


def test_long_responses_see_without_a_mask_what_they_see_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    segments = [Segment(4), Segment(7, prefix=0), Segment(8, prefix=0), Segment(13, prefix=0), Segment(5)]
    query, key, value = (
        torch.randn(1, heads, 37, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    weights = torch.randn(1, 37, 4, 8, generator=generator, dtype=torch.float64)
    masked: list[int] = []
    mask = attention.lower_right_mask

    def noted(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
        masked.append(queries)
        return mask(queries, keys, like)

    monkeypatch.setattr(attention, "lower_right_mask", noted)

    def attended(long: int) -> list[torch.Tensor]:
        masked.clear()
        monkeypatch.setattr(attention, "LONG_RESPONSE", long)
        found, _ = attend(torch.nn.Identity(), query, key, value, None, segments=segments)
        return [found, *torch.autograd.grad((found * weights).sum(), [query, key, value])]

    expected = attended(14)
    assert masked == [7, 8, 13]
    torch.testing.assert_close(attended(8), expected, atol=1e-12, rtol=0)
    assert masked == [7]
    torch.testing.assert_close(attended(1), expected, atol=1e-12, rtol=0)
    assert masked == [7]  # not twice as long as its prompt
