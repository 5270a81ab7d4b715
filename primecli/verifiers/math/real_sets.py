"""Sets of real numbers by their values: [0,1] ∪ [1,2] is [0,2], and x < 2, x ≠ 1 is a union of two intervals."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from primecli.verifiers.math.evaluate import TooLarge, exact, numeric
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.parts import Part
from primecli.verifiers.math.tokens import Unreadable
from primecli.verifiers.math.tree import symbols

_DIGITS = 60
MAX_PIECES = 40
"""Of a set; others are compared as they are written only."""

_INFINITE = {"\\infty": 1, "+\\infty": 1, "-\\infty": -1}


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval, or a point where both ends are the same. An end is an mpmath number, maybe infinite.

    with_low, with_high: whether the ends belong to it.
    """

    low: Any
    high: Any
    with_low: bool
    with_high: bool


def pieces(part: Part) -> list[Piece] | None:
    """The intervals of a range, in order, none of which touches the next; None where an end is not a known number."""
    found = _pieces(part)
    return _merged(found) if found is not None and len(found) <= MAX_PIECES else None


def same_pieces(left: list[Piece], right: list[Piece]) -> bool:
    """Whether two sets in this form are the same."""
    return len(left) == len(right) and all(
        _order(a.low, b.low) == 0 == _order(a.high, b.high) and (a.with_low, a.with_high) == (b.with_low, b.with_high)
        for a, b in zip(left, right, strict=True)
    )


def intersection(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """What belongs to both sets."""
    found = []
    for a in left:
        for b in right:
            low = max((a, b), key=lambda each: (each.low, not each.with_low))
            high = min((a, b), key=lambda each: (each.high, each.with_high))
            side = _order(low.low, high.high)
            if side < 0 or (side == 0 and low.with_low and high.with_high):
                found.append(Piece(low.low, high.high, low.with_low, high.with_high))
    return _merged(found)


def _pieces(part: Part) -> list[Piece] | None:
    if part.kind == "except":
        return _all_but(part)
    if part.kind == "set":
        points = [_end(item.text) if item.kind == "leaf" else None for item in part.items]
        return [Piece(point, point, True, True) for point in points] if None not in points else None
    if part.kind == "union":
        found: list[Piece] = []
        for item in part.items:
            below = _pieces(item)
            if below is None:
                return None
            found += below
        return found
    if part.kind != "tuple" or len(part.items) != 2 or part.brackets not in ("()", "[]", "(]", "[)"):
        return None
    low, high = (_end(item.text) if item.kind == "leaf" else None for item in part.items)
    if low is None or high is None or not low < high:
        return None
    return [Piece(low, high, part.brackets[0] == "[", part.brackets[1] == "]")]


def _all_but(part: Part) -> list[Piece] | None:
    import mpmath

    points: list[Any] = [_end(item.text) if item.kind == "leaf" else None for item in part.items]
    if any(point is None or not mpmath.isfinite(point) for point in points):
        return None
    ends = [-mpmath.inf, *sorted(points), mpmath.inf]
    return [Piece(low, high, False, False) for low, high in pairwise(ends) if low < high]


def _end(text: str) -> Any:
    """The number that a text spells, to many digits; None where it is not one."""
    import mpmath

    sign = _INFINITE.get(squeeze(text))
    if sign is not None:
        return sign * mpmath.inf
    try:
        tree = parse_expression(text)
        if symbols(tree):
            return None
        value = exact(tree)
        with mpmath.workdps(_DIGITS):
            if isinstance(value, Fraction):
                return mpmath.mpf(value.numerator) / value.denominator
            number = numeric(tree, {}, bounded=True)
            return number if isinstance(number, mpmath.mpf) else None
    except (Unreadable, TooLarge):
        return None


def _order(a: Any, b: Any) -> int:
    """-1, 0 or 1, as a is less than, the same as, or more than b."""
    import mpmath

    if a == b or (mpmath.isfinite(a) and mpmath.isfinite(b) and abs(a - b) <= mpmath.mpf(10) ** -45 * max(abs(a), 1)):
        return 0
    return -1 if a < b else 1


def _merged(found: list[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for piece in sorted(found, key=lambda each: (each.low, not each.with_low)):
        last = merged[-1] if merged else None
        side = _order(piece.low, last.high) if last is not None else 1
        if last is None or side > 0 or (side == 0 and not (piece.with_low or last.with_high)):
            merged.append(piece)
            continue
        longer = _order(piece.high, last.high)
        high = piece.high if longer > 0 else last.high
        with_high = (longer >= 0 and piece.with_high) or (longer <= 0 and last.with_high)
        with_low = last.with_low or (piece.with_low and _order(piece.low, last.low) == 0)
        merged[-1] = Piece(last.low, high, with_low, with_high)
    return merged
