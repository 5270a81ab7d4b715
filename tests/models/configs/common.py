"""What the tiny configurations of architectures share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 258  # of the tokenizer: 256 bytes, then these two
EOS, PAD = 256, 257
WINDOW = 6  # tokens

DENSE, EXPERTS, WINDOWED, RECURRENT = "dense", "experts", "sliding window", "recurrent"

ATTENTION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
WIDE_HEADS = {**ATTENTION, "head_dim": 16}
ALTERNATING = ["sliding_attention", "full_attention"]
LINEAR_THEN_FULL = ["linear_attention", "full_attention"]
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED_EXPERT = {**QWEN_EXPERTS, "shared_expert_intermediate_size": 16}
ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    **ATTENTION,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
DELTA = {  # gated delta rule
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA2 = {  # of hybrids: 64 = 2 x 32 channels in 4 heads
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.8,
    "attention_multiplier": 0.25,
    "logits_scaling": 2.5,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    name: as people call it.
    type: `model_type` of its configuration in transformers.
    settings: of its configuration, apart from the vocabulary and its special tokens.
    kinds: what its layers are.
    head: what it does to its logits after the head, "cap" or "scale"; "" for nothing.
    spread: standard deviation of its raw logits: far enough from 0 for a cap or a scale to matter. Less where the
        embedding is scaled and shared with the head, since every token would be followed by itself.
    core: whether the quick test covers it.
    """

    name: str
    type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = (DENSE,)
    head: str = ""
    spread: float = 4.0
    core: bool = False

    def __str__(self) -> str:
        return self.name
