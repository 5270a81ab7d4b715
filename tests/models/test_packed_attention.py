"""Packed sequences against each sequence alone, for architectures that can be packed and some that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from primecli.models import attention, packed_attention
from primecli.models.attention import Segment
from primecli.models.trial_tokens import spread_ids
from tests.models.architectures import build

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
MLA = {
    **WIDE, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
SIGHT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 28}


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
        ("DeepseekV3", MLA),  # values of another head size than keys
        (
            "JetMoe",
            {**WIDE, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        ),  # takes views of the output
        ("Qwen3Moe", {**WIDE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_packed_rows_see_what_they_would_alone(name: str, settings: dict[str, Any]) -> None:
    model = make(name, **settings)
    assert packed_attention.can_pack(model)
    prompt, first, second, other = (torch.randint(40, (size,)) for size in (9, 5, 1, 12))
    with torch.no_grad():
        packed = packed_attention.hidden_states(
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
        ("Mistral", {**WIDE, "sliding_window": 16}),  # a window that a short test input does not reach
        ("Qwen2", {**WIDE, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("GptOss", {**WIDE, "head_dim": 8, "num_local_experts": 4, "layer_types": ["full_attention"] * 2}),  # sinks
        (
            "Llama",
            {**WIDE, "max_position_embeddings": 64, "rope_parameters": DYNAMIC},
        ),  # positions depend on the longest row
        ("Gemma2", {**WIDE, "head_dim": 8, "layer_types": ["full_attention"] * 2}),  # a cap far above these scores
        (
            "Bloom",
            {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        ),  # biases that depend on the distance
    ],
)
def test_a_model_that_would_compute_something_else_is_not_packed(name: str, settings: dict[str, Any]) -> None:
    model = make(name, **settings)
    before = model.config._attn_implementation
    assert not packed_attention.can_pack(model)
    assert model.config._attn_implementation == before


def test_rows_that_are_not_packed_are_as_before() -> None:
    model = make("Qwen2", **WIDE)
    ids = torch.randint(40, (3, 11))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert packed_attention.can_pack(model)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-6, rtol=1e-6)


def test_a_model_in_bfloat16_packs() -> None:
    assert packed_attention.can_pack(make("Qwen2", **WIDE).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_attention.can_pack(make("Qwen2", **WIDE))


def test_a_window_of_the_language_part_of_a_model_is_seen() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**WIDE, "head_dim": 8, "num_hidden_layers": 6, "sliding_window": 16}
    config = Gemma3Config(text_config=text, vision_config={**SIGHT, "patch_size": 14}, mm_tokens_per_image=4)
    assert not packed_attention.can_pack(Gemma3ForConditionalGeneration(config).eval())  # type: ignore[no-untyped-call]


def test_a_leak_is_seen_beside_a_state_that_is_far_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision, where the other dimensions carry the only trace of it."""
    own = attention.attend

    def leaking(*given: Any, segments: list[Segment] | None = None, **named: Any) -> Any:
        return own(*given, **named)

    model = make("Phi", **WIDE, initializer_range=0.3)
    with torch.no_grad():
        model.model.final_layernorm.bias[3] = 100
    model.bfloat16()
    with monkeypatch.context() as patched:
        patched.setattr(attention, "attend", leaking)
        assert not packed_attention.can_pack(model)
    attention.register_packed()


@pytest.mark.parametrize("name", ["LFM2", "MiniMax", "Granite 4 hybrid"])
@pytest.mark.parametrize("share", [1.0, 1e-6])
def test_a_state_that_passes_from_one_sequence_to_the_next_is_seen_however_little_it_is(
    name: str, share: float
) -> None:
    """A layer may hardly count yet, or forget so fast that a few tokens do not show what it keeps."""
    model = build(name)
    with torch.no_grad():
        for layer, parameter in model.named_parameters():
            if "out_proj" in layer and ".layers.0." in layer:
                parameter.mul_(share)
    with torch.inference_mode():
        found = packed_attention.obstacle(model)
    assert found is not None
    assert "depends on the sequences before it" in found


def test_what_a_model_computes_is_not_changed_by_asking() -> None:
    model = make("Qwen2", **WIDE)
    ids = torch.randint(40, (2, 11))
    before = model(ids).logits
    assert packed_attention.obstacle(model) is None
    torch.testing.assert_close(model(ids).logits, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_does_not_get_into_what_is_saved(tmp_path: Path) -> None:
    model = make("Qwen2", **WIDE)
    assert packed_attention.can_pack(model)
    model.save_pretrained(tmp_path)
    assert attention.PACKED not in (tmp_path / "config.json").read_text()


def test_the_probe_takes_tokens_from_all_over_the_vocabulary() -> None:
    model = make("Qwen2", **WIDE)
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda module, given: seen.extend(given[0].flatten().tolist())
    )
    assert packed_attention.can_pack(model)
    assert set(seen) == set(spread_ids(model.get_input_embeddings().num_embeddings, 16))
