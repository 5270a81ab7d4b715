"""Congruences: `x \\equiv 3 \\pmod 7`, `3 \\pmod 7`, and the numbers 7k + 3 that satisfy one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from primecli.verifiers.math.constants import INTEGER
from primecli.verifiers.math.evaluate import exact
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.parts import SEPARATOR, split_top
from primecli.verifiers.math.tokens import Unreadable
from primecli.verifiers.math.tree import Tree, substitute, symbols

# the modulus at the end: "\pmod 7", "(mod 7)", "\bmod{7}"; one of the groups has it
_MODULUS = re.compile(
    r"\(?\s?\\?[bp]?mod(?![a-zA-Z])\s{0,4}(?:\{([^{}]{1,80})\}|\(([^()]{1,80})\)|([^\s(){},;]{1,80}))\s?\)?$"
)
_EQUIV = re.compile(r"\\equiv(?![a-zA-Z])")
_CLASS = re.compile(r"\\equiv(?![a-zA-Z])|\\pmod(?![a-zA-Z])|\(\s*\\?mod(?![a-zA-Z])")
_PM = re.compile(r"\\pm(?![a-zA-Z])")
_NAMED = re.compile(r"([a-zA-Z](?:_\{?\w\}?)?)\s*=(?![=<>])")
_LETTERS = {"k", "n", "m", "t", "j", "l", INTEGER}


@dataclass(frozen=True, slots=True)
class Congruence:
    """Residue classes.

    name: what is congruent, such as x, or "".
    residues: as expressions, such as ("1", "6").
    modulus: an expression.
    """

    name: str
    residues: tuple[str, ...]
    modulus: str


def is_congruence(text: str) -> bool:
    """Whether a normalised answer is a residue class; `17 \\bmod 5` is a number."""
    return "mod" in text and bool(_CLASS.search(text))


def congruences_equal(gold: str, answer: str) -> bool:
    """Whether an answer is the gold congruence, or the general number that satisfies it: `7k + 3`.

    A single number, such as 3, is not: it is one solution of many.

    >>> congruences_equal(r"x \\equiv 3 \\pmod 7", r"x \\equiv 10 \\pmod{7}"), congruences_equal("3 \\\\pmod 7", "3")
    (True, False)
    """
    left = _read(gold)
    if left is None:
        return False
    right = _read(answer)
    if right is None:
        return _solves(left, answer)
    if left.name and right.name and left.name != right.name:
        return False
    modulus, other = _whole(left.modulus), _whole(right.modulus)
    if not modulus or not other:  # letters, or 0
        same = [squeeze(each) for each in (left.modulus, *left.residues)]
        return same == [squeeze(each) for each in (right.modulus, *right.residues)]
    classes, others = _classes(left, modulus), _classes(right, other)
    return modulus == other and classes is not None and classes == others


def _read(text: str) -> Congruence | None:
    """A congruence, or several with the same modulus and name in a list; else None."""
    pieces = split_top(text, SEPARATOR)
    if pieces is None:
        return None
    name = modulus = ""
    residues: list[str] = []
    for piece in reversed([each.strip() for each in pieces[0] if each.strip()]):
        found = _MODULUS.search(piece)
        if found is not None:
            own = (found.group(1) or found.group(2) or found.group(3)).strip()
            if modulus and squeeze(own) != squeeze(modulus):
                return None
            modulus, piece = own, piece[: found.start()].strip()
        sides = _EQUIV.split(piece)
        if len(sides) > 2 or not modulus:
            return None
        if len(sides) == 2:
            own = squeeze(sides[0])
            if name and own != name:
                return None
            name = own
        residues.append(sides[-1].strip())
    return Congruence(name, tuple(residues), modulus) if modulus else None


def _classes(congruence: Congruence, modulus: int) -> frozenset[int] | None:
    signed = [_PM.sub(sign, each) for each in congruence.residues for sign in ("+", "-")]
    values = [_whole(each) for each in signed]
    return frozenset(value % modulus for value in values if value is not None) if None not in values else None


def _whole(text: str) -> int | None:
    """The value of an expression if it is a whole number."""
    try:
        value = exact(parse_expression(text))
    except Unreadable:
        return None
    return value.numerator if value is not None and value.denominator == 1 else None


def _solves(gold: Congruence, answer: str) -> bool:
    """Whether an answer is `x = 7k + 3`, for a single class of whole numbers."""
    named = _NAMED.match(answer)
    if named is not None and gold.name and squeeze(named.group(1)) != gold.name:
        return False
    try:
        tree = parse_expression(answer[named.end() :] if named else answer)
        names = symbols(tree)
        if len(names) != 1 or not names <= _LETTERS or gold.name in names:
            return False
        start, one, two, five = (_at(tree, min(names), n) for n in (0, 1, 2, 5))
    except Unreadable:
        return False
    modulus = _whole(gold.modulus)
    if not modulus or start is None or one is None:
        return False
    step = one - start
    linear = two == start + 2 * step and five == start + 5 * step
    if not linear or start.denominator != 1 or abs(step) != modulus:
        return False
    return _classes(gold, modulus) == frozenset({start.numerator % modulus})


def _at(tree: Tree, name: str, value: int) -> Fraction | None:
    return exact(substitute(tree, {name: ("num", Fraction(value))}))
