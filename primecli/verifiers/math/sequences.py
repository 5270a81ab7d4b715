"""Lists with dots in them, and lists of named values, in the order that counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from primecli.verifiers.math.evaluate import exact
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.parts import MAX_PARTS, Part, split_top
from primecli.verifiers.math.tokens import Unreadable

DOTS = "\\ldots"
_INDEXED = re.compile(r"([a-zA-Z])_\{?(\d)\}?")
_OPERATOR = re.compile(r"\+|-|\\cdot(?![a-zA-Z])|\\ldots(?![a-zA-Z])")


def has_dots(items: tuple[Part, ...]) -> bool:
    """Whether one of the items stands for others."""
    return any(item.text.strip() == DOTS for item in items)


@dataclass(frozen=True, slots=True)
class Progression:
    """Numbers in steps of the same size, such as 1, 2, …, n: the first, the step, and the last as it is written."""

    first: Fraction
    step: Fraction
    last: Part


def progression(items: tuple[Part, ...]) -> Progression | None:
    """The progression that `1, 2, \\ldots, n` is; None where the numbers before the dots do not show it.

    The first two show it only if they differ by 1: `1, 2, \\ldots, 16` may not be the powers of two, but
    `2, 4, \\ldots, 16` may.
    """
    if len(items) < 3 or items[-2].text.strip() != DOTS or has_dots((*items[:-2], items[-1])):
        return None
    values = [_value(item) for item in items[:-2]]
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    step = known[1] - known[0] if len(known) > 1 else Fraction(1)
    if len(known) < 3 and abs(step) != 1:
        return None
    if step == 0 or any(b - a != step for a, b in pairwise(known)):
        return None
    return Progression(known[0], step, items[-1])


def written_out(items: tuple[Part, ...]) -> tuple[Part, ...]:
    """The items with the numbers that the dots stand for, where the list ends in a number; else as they are."""
    found = progression(items)
    last = _value(found.last) if found is not None else None
    if found is None or last is None:
        return items
    steps = (last - found.first) / found.step
    if steps.denominator != 1 or not len(items) - 2 <= steps < MAX_PARTS:
        return items
    values = [found.first + found.step * index for index in range(int(steps) + 1)]
    return tuple(Part("leaf", f"{value.numerator}/{value.denominator}") for value in values)


def _value(item: Part) -> Fraction | None:
    try:
        return exact(parse_expression(item.text)) if item.kind == "leaf" else None
    except Unreadable:
        return None


def terms_around_dots(text: str) -> tuple[list[str], list[str]] | None:
    """The terms of `1 + 2 + \\ldots + n` and the signs between them; None where brackets do not balance.

    >>> terms_around_dots(r"1+\\ldots + n")
    (['1', '', '', 'n'], ['+', '\\\\ldots', '+'])
    """
    found = split_top(text, _OPERATOR)
    return ([term.strip() for term in found[0]], found[1]) if found is not None else None


def in_order_of_names(items: tuple[Part, ...]) -> tuple[Part, ...]:
    """Named values as the point that they are: `y=3, x=2` is (2, 3).

    Names that follow one another in the alphabet say the order, and r comes before \\theta; of others it is the order
    in which they are written.
    """
    names = [squeeze(item.text.split("=")[0]) if item.text.count("=") == 1 else "" for item in items]
    if names == ["\\theta", "r"]:
        return items[::-1]
    indexed = [_INDEXED.fullmatch(name) for name in names]
    if all(indexed) and len({match.group(1) for match in indexed if match}) == 1:  # x_2=4, x_1=3
        numbers = [int(match.group(2)) for match in indexed if match]
        return tuple(item for _, item in sorted(zip(numbers, items, strict=True), key=lambda pair: pair[0]))
    if not all(len(name) == 1 and name.isalpha() for name in names):
        return items
    codes = sorted(map(ord, names))
    if codes != list(range(codes[0], codes[0] + len(codes))):
        return items
    return tuple(item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: pair[0]))
