"""Packed sequences against each sequence alone, for architectures that can be packed and some that cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from primecli import attention
from primecli.attention import Segment

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}


def make(name: str, **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Qwen2", WIDE),
        ("Llama", WIDE),
        ("Qwen3", {**WIDE, "head_dim": 8}),
        ("Mistral", {**WIDE, "sliding_window": None}),
        ("Gemma", {**WIDE, "head_dim": 8}),
        ("Qwen3Moe", {**WIDE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_packed_rows_see_what_they_would_alone(name: str, settings: dict[str, Any]) -> None:
    model = make(name, **settings)
    assert attention.packs(model)
    prompt, first, second, other = (torch.randint(40, (size,)) for size in (9, 5, 1, 12))
    with torch.no_grad():
        packed = attention.hidden_states(
            model,
            torch.cat([prompt, first, other, second])[None],
            torch.cat([torch.arange(14), torch.arange(12), torch.arange(9, 10)])[None],
            [Segment(9), Segment(5, prefix=0), Segment(12), Segment(1, prefix=0)],
        )[0]
        alone = [
            model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            for ids in (torch.cat([prompt, first]), other, torch.cat([prompt, second]))
        ]
    torch.testing.assert_close(packed, torch.cat([alone[0], alone[1], alone[2][9:]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Mistral", {**WIDE, "sliding_window": 16}),  # a window, which a short probe does not meet
        ("Qwen2", {**WIDE, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("GptOss", {**WIDE, "head_dim": 8, "num_local_experts": 4, "layer_types": ["full_attention"] * 2}),  # sinks
        ("Bloom", {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4}),  # biases by distance
    ],
)
def test_a_model_that_would_compute_something_else_is_not_packed(name: str, settings: dict[str, Any]) -> None:
    model = make(name, **settings)
    before = model.config._attn_implementation
    assert not attention.packs(model)
    assert model.config._attn_implementation == before


def test_rows_that_are_not_packed_are_as_before() -> None:
    model = make("Qwen2", **WIDE)
    ids = torch.randint(40, (3, 11))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert attention.packs(model)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-6, rtol=1e-6)


def test_a_model_in_bfloat16_packs() -> None:
    assert attention.packs(make("Qwen2", **WIDE).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.packs(make("Qwen2", **WIDE))
