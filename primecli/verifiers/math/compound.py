"""Values of several quantities: 1 hour 30 minutes, 3 m · 4 m, 3 cm + 4 cm."""

from __future__ import annotations

import re
from itertools import pairwise

from primecli.verifiers.math.measures import conversion, measure
from primecli.verifiers.math.units import canonical_unit, cut_unit

_NUMBER = r"(?:\d{1,12}(?:\.\d{1,12})?(?:/\d{1,9})?|\\frac\{\d{1,9}\}\{\d{1,9}\})"
# "1 hour 30 minutes", "5 ft 6 in", "2 dollars and 50 cents"
_SEVERAL = re.compile(rf"\s*({_NUMBER})\s*([a-zA-Z]+)\.?(?:\s*,)?(?:\s+and\b)?\s*")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_PURE = re.compile(r"[-\d./ ()]+|-?\\frac\{\d+\}\{\d+\}|-?\d*\\sqrt\{\d+\}")


def is_compound(text: str) -> bool:
    """Whether a text is one quantity in several units, such as `1 hour and 30 minutes`."""
    return _in_several_units(text) is not None


def add_up(text: str) -> tuple[str, str, bool] | None:
    """The value of several quantities, its unit, and whether it was one quantity in several units; else None.

    >>> add_up("1 hour 30 minutes"), add_up(r"3\\text{ m} \\cdot 4\\text{ m}"), add_up("5 m")
    (('(1)\\\\cdot 60+(30)', 'minute', True), ('(3)\\\\cdot (4)', 'meter^2', False), None)
    """
    if " " not in text and "\\text" not in text:
        return None
    if text.count("\\text{") > 1:
        for sign in ("\\cdot", "+", "-"):
            if sign in text:
                return _joined(text, sign)
    several = _in_several_units(text)
    return (*several, True) if several is not None else None


def _in_several_units(text: str) -> tuple[str, str] | None:
    """The value in the last of the units, and that; each unit must be smaller than the one before."""
    bare = _TEXT.sub(r" \1 ", text).strip()
    if len(bare) > 100 or not (bare[:1].isdigit() or bare.startswith("\\frac")):
        return None
    found: list[tuple[str, str]] = []
    position = 0
    while position < len(bare):
        match = _SEVERAL.match(bare, position)
        if match is None:
            return None
        unit = canonical_unit(match.group(2))
        if measure(unit) is None:
            return None
        found.append((match.group(1), unit))
        position = match.end()
    if len(found) < 2:
        return None
    for (_, larger), (_, smaller) in pairwise(found):
        factor = conversion(larger, smaller)
        if factor is None or factor <= 1:
            return None
    last = found[-1][1]
    terms = [f"({number})\\cdot {conversion(unit, last)}" for number, unit in found[:-1]]
    return "+".join([*terms, f"({found[-1][0]})"]), last


def _joined(text: str, sign: str) -> tuple[str, str, bool] | None:
    """A product, sum or difference of numbers that each have a unit."""
    heads: list[str] = []
    units: list[str] = []
    for piece in text.split(sign):
        cut = cut_unit(piece.strip())
        if cut is None or cut[2] or not _PURE.fullmatch(cut[0]) or (cut[1] and measure(cut[1]) is None):
            return None
        heads.append(f"({cut[0]})")
        units.append(cut[1])
    if sign != "\\cdot":
        return (sign.join(heads), units[0], False) if len(set(units)) == 1 and units[0] else None
    return "\\cdot ".join(heads), _product(units), False


def _product(units: list[str]) -> str:
    """The canonical product of canonical units."""
    powers: dict[str, int] = {}
    for unit in units:
        for index, part in enumerate(unit.split("/") if unit else []):
            for factor in part.split():
                name, _, exponent = factor.partition("^")
                powers[name] = powers.get(name, 0) + (-1 if index else 1) * int(exponent or 1)
    return canonical_unit(" ".join(f"{name}^{power}" for name, power in powers.items() if power))
