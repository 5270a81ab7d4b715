"""Attention that transformers does not have: over packed rows, and of one token to a cache without copying its keys.

It is one function, which transformers knows by two names. Under PACKED, transformers makes no mask, since the segments
of a row say which tokens see which; under DECODING it makes the mask that `sdpa` has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

PACKED = "primecli"
DECODING = "primecli_decoding"

LONG_RESPONSE = 512
"""Tokens of a response from which on causal attention over its prompt too is faster than a mask; see `_by_segments`."""

CHANGING_NOTHING = {"position_ids", "cache_position", "use_cache", "is_causal", "deterministic"}
"""Arguments that a model may pass to its attention and that change nothing here; is_causal is True by then."""


_compiled = False  # see `register_packed`


class Segment(NamedTuple):
    """The next tokens of a packed row: a prompt, a response, or both. They see each other causally.

    length: how many tokens.
    prefix: number (from 0) of the segment that they see as a whole, which holds their prompt; None where they see none.
    """

    length: int
    prefix: int | None = None


class Segments:
    """The segments of a packed row, as one object.

    torch.compile hands it on as it is. Of a list, it would compile a version for every number of segments.
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        self._all = tuple(segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._all)


def register_packed(*, compiled: bool = False) -> None:
    """Makes `attend` known to transformers as PACKED.

    compiled: torch.compile is to call it, not to look into it, for as long as this process lives.
    """
    from transformers import AttentionInterface

    global _compiled
    _compiled = _compiled or compiled
    AttentionInterface.register(PACKED, torch.compiler.disable(attend) if _compiled else attend)  # type: ignore[no-untyped-call]


def register_decoding() -> None:
    """Makes `attend` known to transformers as DECODING, with the mask of `sdpa`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(DECODING, attend)
    AttentionMaskInterface.register(DECODING, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Iterable[Segment] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer. Returns (B, T, H, d).

    With segments, B is 1 and each segment attends to itself and to its prefix. A single token per row, T = 1, attends
    to the cache without copies of the keys. Everything else is attention as in transformers' `sdpa`.

    query: (B, H, T, d). key, value: (B, K, S, d), H a multiple of K. attention_mask: (B, 1 or H, T, S); None for causal
    attention. segments: T tokens in total. Raises TypeError where segments are given and the model asks for more than
    causal attention: a mask, dropout, a cache, a window, a cap, a bias, sinks.
    """
    if segments is None and query.shape[2] == 1:
        per_head = attention_mask is not None and attention_mask.shape[1] != 1
        if not per_head and others.get("position_bias") is None:
            return _one_token(query, key, value, attention_mask, scaling, dropout), None
    extras = {name for name, argument in others.items() if _matters(name, argument)}
    if attention_mask is not None or dropout or query.shape[2] != key.shape[2]:
        extras.add("a mask, a cache or dropout")
    if segments is not None:
        if extras:
            kind = ", ".join(sorted(extras))
            raise TypeError(f"{type(module).__name__} asks for attention with {kind}, which packed rows do not have")
        return _by_segments(query, key, value, list(segments), scaling), None
    if extras:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
        return result
    # each row is one sequence, padded on the right if at all, so that causal attention needs no mask
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous(), None  # some layers take a view of it


def _matters(name: str, argument: object) -> bool:
    """Whether this argument of a model asks for anything else than causal attention over whole rows."""
    if name == "is_causal":
        return argument is False
    return not (name in CHANGING_NOTHING or argument is None or argument is False)


def _one_token(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    """Attention of one token per row: (B, 1, H, d), from query (B, H, 1, d) and key, value (B, K, S, d).

    The H / K query heads that share a key head become H / K queries of that head, since their mask, (B, 1, 1, S), is
    the same. `sdpa` would copy the keys H / K times instead where there is a mask.
    """
    rows, heads, _, size = query.shape
    key_heads = key.shape[1]
    queries = query.reshape(rows, key_heads, heads // key_heads, size)
    output = scaled_dot_product_attention(queries, key, value, attention_mask, dropout_p=dropout, scale=scaling)
    return output.reshape(rows, 1, heads, output.shape[-1])


def _by_segments(query: Tensor, key: Tensor, value: Tensor, segments: list[Segment], scaling: float | None) -> Tensor:
    """Attention within a packed row: (1, T, H, d). The work is that of the segments; a T x T mask is never made.

    A kernel that takes a mask computes what the mask hides, too. It is spared that where a response is long, and at
    least twice as long as its prompt: the prompt's queries are computed again with the response's, without a mask.
    """
    if torch.is_autocast_enabled(query.device.type):
        # autocast would do this for scaled_dot_product_attention, but a CausalBias replaces that function
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    lengths = [segment.length for segment in segments]
    queries, keys, values = (torch.split(each, lengths, dim=2) for each in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    pieces = []
    for number, (length, prefix) in enumerate(segments):
        asking, seen, known, mask = queries[number], keys[number], values[number], None  # (1, H or K, length, d)
        if prefix is not None:
            seen = torch.cat([keys[prefix], seen], dim=2)  # (1, K, prefix + length, d)
            known = torch.cat([values[prefix], known], dim=2)
            if _needs_dense_mask(query) and length >= max(LONG_RESPONSE, 2 * lengths[prefix]):
                asking = torch.cat([queries[prefix], asking], dim=2)  # (1, H, prefix + length, d)
            else:
                mask = lower_right_mask(length, seen.shape[2], query)
        piece = scaled_dot_product_attention(
            asking, seen, known, mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        pieces.append(piece[:, :, -length:].transpose(1, 2))
    return torch.cat(pieces, dim=1)


def _needs_dense_mask(query: Tensor) -> bool:
    """Whether no kernel for these queries takes a `CausalBias` in place of a mask.

    A `CausalBias` is for the flash kernel, which takes 16-bit numbers on a GPU; for others it may choose a kernel that
    cannot share keys between heads.
    """
    return query.device.type == "cpu" or query.dtype.itemsize != 2


def lower_right_mask(queries: int, keys: int, query: Tensor) -> Tensor:
    """The mask by which the last query sees all keys, and each query before it one key fewer.

    query: what attends, or anything on the same device and of the same dtype.
    """
    if _needs_dense_mask(query):
        return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    mask: Tensor = causal_lower_right(queries, keys)
    return mask
