"""The soft penalty for responses near the length limit. This does not import torch, since `verify` does not."""

from __future__ import annotations


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """From 0 to 1: 0 up to `limit - buffer` tokens, from there on rising in a straight line, and 1 from `limit` on.

    length: tokens of the response. limit: tokens at which the penalty is whole. buffer: tokens over which it rises.
    Soft overlong punishment of DAPO (arXiv 2503.14476), equation 13, with the other sign.

    >>> [overlong_penalty(length, limit=20, buffer=8) for length in (12, 16, 20, 25)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(1.0, max(0.0, (length - limit + buffer) / buffer))
