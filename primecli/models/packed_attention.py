"""Attention over packed sequences: several of them in one row, each seeing itself and the prompt that it shares.

Registered with transformers as an attention implementation, so that it serves every model that takes one.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

NAME = "primecli"  # as transformers knows it
PROBE_TOLERANCE = 1e-4  # of a token's hidden state, in the mean: seeing another sequence is far off
HALF_TOLERANCE = 5e-2  # as above, where products are taken with 8 or 11 bits

CHANGING_NOTHING = {"position_ids", "cache_position", "use_cache", "is_causal", "deterministic"}
"""Arguments of an attention that may be given and have no effect here; is_causal is True by then."""
ROPE_OF_THE_LONGEST = ("dynamic", "longrope")  # they turn every token of a row by the row's largest position

_packs: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class Segment(NamedTuple):
    """The next tokens of a packed row: a prompt, a response, or both. They see each other causally.

    length: how many tokens.
    prefix: number (from 0) of the segment that they see as a whole, which holds their prompt; None where they see none.
    """

    length: int
    prefix: int | None = None


def hidden_states(model: Any, ids: Tensor, positions: Tensor, segments: list[Segment]) -> Tensor:
    """(1, T, D): the last hidden states of a packed row, by a model that `packs`.

    ids: (1, T) int64; positions: (1, T) int64, of each token in its own sequence; segments: of T places in all.
    """
    hidden: Tensor = model.base_model(
        input_ids=ids, position_ids=positions, use_cache=False, segments=segments
    ).last_hidden_state
    return hidden


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    segments: list[Segment] | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer. query: (B, H, T, d); key, value: (B, K, T, d), H a multiple of K.

    segments: of the row, B being 1; without them each row is one sequence that is filled at the right, so that causal
    attention needs no mask. Returns (B, T, H, d). The work is that of the segments alone: T² is never made.
    Raises TypeError for what it would have to leave out: a mask, dropout, a cache, a window, a cap, a bias, sinks.
    """
    wanted = {name for name, argument in others.items() if _matters(name, argument)}
    if attention_mask is not None or dropout or wanted or query.shape[2] != key.shape[2]:
        kind = ", ".join(sorted(wanted)) or "a mask, a cache or dropout"
        raise TypeError(f"{type(module).__name__} asks for attention with {kind}, which {NAME} has not")
    shared = query.shape[1] != key.shape[1]
    if segments is None:
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared)
        return output.transpose(1, 2).contiguous(), None  # some layers take a view of it
    if torch.is_autocast_enabled(query.device.type):
        # what autocast does for `scaled_dot_product_attention`, but not for the one that a CausalBias puts in its place
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    sizes = [segment.length for segment in segments]
    keys, values = torch.split(key, sizes, dim=2), torch.split(value, sizes, dim=2)
    pieces = []
    for own, (part, segment) in enumerate(zip(torch.split(query, sizes, dim=2), segments, strict=True)):
        seen, known, mask = keys[own], values[own], None
        if segment.prefix is not None:
            seen = torch.cat([keys[segment.prefix], seen], dim=2)
            known = torch.cat([values[segment.prefix], known], dim=2)
            mask = lower_right_mask(segment.length, seen.shape[2], query.device)
        pieces.append(
            scaled_dot_product_attention(
                part, seen, known, mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
            )
        )
    return torch.cat([piece.transpose(1, 2) for piece in pieces], dim=1), None


def _matters(name: str, argument: object) -> bool:
    """Whether an argument that a model gives its attention asks for another than causal attention over all of a row."""
    if name == "is_causal":
        return argument is False
    return not (name in CHANGING_NOTHING or argument is None or argument is False)


def lower_right_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """The mask by which the last of the queries sees all keys, and each one before it a key less."""
    if device.type == "cpu":  # quicker there than what follows, which is for the flash kernel
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    mask: Tensor = causal_lower_right(queries, keys)
    return mask


def can_pack(model: Any) -> bool:
    """Whether the model computes the same for packed sequences as for each alone, found out on a short probe.

    Not so for attention of other kinds (a window, a bias or a cap on the scores), or positions that the model counts
    itself. A model that packs is left with this attention, which is that of `sdpa` for rows that are not packed.
    """
    if model not in _packs:
        _packs[model] = _has_full_attention(model.config) and _has_fixed_positions(model) and _probe(model)
    return _packs[model]


def _has_full_attention(config: Any) -> bool:
    """Whether no layer's attention ends at a window, which a short probe would not show."""
    config = config.get_text_config()  # a model that sees images too has one for its language model
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return not any(windows) or getattr(config, "use_sliding_window", True) is False


def _has_fixed_positions(model: Any) -> bool:
    """Whether a position is encoded alike in rows of every length, which a short probe would not show."""
    found = [getattr(module, "rope_type", None) for module in model.modules()]
    types = {str(kind) for entry in found for kind in (entry.values() if isinstance(entry, dict) else [entry])}
    return not any(name in kind for kind in types for name in ROPE_OF_THE_LONGEST)


def _probe(model: Any) -> bool:
    from transformers import AttentionInterface

    if not getattr(model, "_supports_attention_backend", False):
        return False
    AttentionInterface.register(NAME, attend)
    words = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 12, device=model.device) % words
    first, second = torch.cat([ids[:4], ids[4:7]]), torch.cat([ids[:4], ids[7:]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]], device=model.device)
    segments = [Segment(4), Segment(3, prefix=0), Segment(4, prefix=0)]
    before = model.config._attn_implementation
    with torch.no_grad():
        alone = [model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in (first, second)]
        expected = torch.cat([alone[0], alone[1][4:]])
        model.set_attn_implementation(NAME)
        found = None
        # a forward that takes no position_ids or passes nothing on; attention of another kind
        with contextlib.suppress(TypeError):
            found = hidden_states(model, ids[None], positions, segments)[0]
    half = expected.dtype.itemsize == 2 or torch.is_autocast_enabled(model.device.type)
    limit = HALF_TOLERANCE if half else PROBE_TOLERANCE
    same = found is not None and bool((_sizes(found - expected) <= limit * _sizes(expected)).all())
    if not same:
        model.set_attn_implementation(before)
    return same


def _sizes(hidden: Tensor) -> Tensor:
    """(T,) float32: the mean size of (T, D) states. A few of them may be far larger than all others, and noisier."""
    return hidden.float().abs().mean(-1)
