"""Tokens for trials of a model: inputs of which only the layers' behaviour matters, not what they say."""

from __future__ import annotations


def spread_ids(vocabulary: int, count: int) -> list[int]:
    """Token ids from all over the vocabulary, which differ where it is large enough.

    The first ids are often those of special tokens, whose embeddings nobody trained: a model's layers can make the
    rounding of such a state a thousand times larger, and the more so the further the model is trained.

    >>> spread_ids(50_000, 4)
    [30901, 11803, 42705, 23606]
    """
    golden = (5**0.5 - 1) / 2
    return [int(number * golden % 1 * vocabulary) for number in range(1, count + 1)]
