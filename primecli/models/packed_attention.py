"""Packed sequences, several in one row, each seeing only itself and its prompt; and which models can do that."""

from __future__ import annotations

import contextlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from primecli.models.attention import PACKED, Segment, register_packed
from primecli.models.body import body_of

PROBE_TOLERANCE = 1e-4  # relative, of a token's hidden state on average; seeing another sequence changes far more
HALF_TOLERANCE = 5e-2  # the same where products have 8 or 11 bits of precision
ROPE_OF_THE_LONGEST = ("dynamic", "longrope")  # kinds of RoPE that rotate each token by its row's largest position

_packs: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def hidden_states(model: Any, ids: Tensor, positions: Tensor, segments: list[Segment]) -> Tensor:
    """(1, T, D): the last hidden states of a packed row, by a model for which `can_pack` holds.

    ids: (1, T) int64. positions: (1, T) int64, each token's position in its own sequence. segments: T tokens in total.
    """
    hidden: Tensor = body_of(model)(
        input_ids=ids, position_ids=positions, use_cache=False, segments=segments
    ).last_hidden_state
    return hidden


def can_pack(model: Any) -> bool:
    """Whether the model computes the same for packed sequences as for each of them alone, tested on a short input.

    It does not where its attention is of another kind (with a window, a bias or a cap on the scores), or where it
    counts positions itself. A model that can pack keeps `attention.attend`, which is `sdpa` for rows that are not
    packed.
    """
    if model not in _packs:
        _packs[model] = _has_full_attention(model.config) and _has_fixed_positions(model) and _probe(model)
    return _packs[model]


def _has_full_attention(config: Any) -> bool:
    """Whether no layer's attention is limited to a window, which a short test input would not show."""
    config = config.get_text_config()  # models that take images too have one for their language model
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return not any(windows) or getattr(config, "use_sliding_window", True) is False


def _has_fixed_positions(model: Any) -> bool:
    """Whether a position is encoded the same way in rows of any length, which a short test input would not show."""
    rope_types = [getattr(module, "rope_type", None) for module in model.modules()]
    types = {str(kind) for entry in rope_types for kind in (entry.values() if isinstance(entry, dict) else [entry])}
    return not any(name in kind for kind in types for name in ROPE_OF_THE_LONGEST)


def _probe(model: Any) -> bool:
    if not getattr(model, "_supports_attention_backend", False):
        return False
    register_packed()
    vocabulary_size = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 12, device=model.device) % vocabulary_size
    first, second = torch.cat([ids[:4], ids[4:7]]), torch.cat([ids[:4], ids[7:]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]], device=model.device)
    segments = [Segment(4), Segment(3, prefix=0), Segment(4, prefix=0)]
    original = model.config._attn_implementation
    with torch.no_grad():
        alone = [body_of(model)(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in (first, second)]
        expected = torch.cat([alone[0], alone[1][4:]])
        model.set_attn_implementation(PACKED)
        packed = None
        # raised by a forward that takes no position_ids or no further arguments, and by attention of another kind
        with contextlib.suppress(TypeError):
            packed = hidden_states(model, ids[None], positions, segments)[0]
    half = expected.dtype.itemsize == 2 or torch.is_autocast_enabled(model.device.type)
    limit = HALF_TOLERANCE if half else PROBE_TOLERANCE
    same = packed is not None and bool((_sizes(packed - expected) <= limit * _sizes(expected)).all())
    if not same:
        model.set_attn_implementation(original)
    return same


def _sizes(hidden: Tensor) -> Tensor:
    """(T,) float32: the mean absolute value of each state, (T, D).

    A few of a state's D numbers can be far larger and noisier than the rest, so the largest difference would say
    little.
    """
    return hidden.float().abs().mean(-1)
