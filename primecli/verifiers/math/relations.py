"""Equations and inequalities: their sides, whether two say the same, and the interval that an inequality describes."""

from __future__ import annotations

import re
from fractions import Fraction

from primecli.verifiers.math.constants import renamed
from primecli.verifiers.math.equal_expressions import proportion, real_branch
from primecli.verifiers.math.evaluate import TooLarge, exact
from primecli.verifiers.math.leaf import read_leaf
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.parts import Part, split_top
from primecli.verifiers.math.real_sets import Piece, intersection, pieces, same_pieces
from primecli.verifiers.math.tokens import TRIG, Unreadable
from primecli.verifiers.math.tree import Tree, children, substitute, symbols

_RELATION = re.compile(r"=|<|>|\\(?:leq|geq|neq|approx|Rightarrow|Leftrightarrow|to|equiv|sim)(?![a-zA-Z])")
# what a quantity may be called, such as f(x) or \angle ABC
_NAME = re.compile(r"(?!\d)[a-zA-Z\\][a-zA-Z\d\\{}_'(),|: ]*")
# commands that make it a value
_VALUE = re.compile(r"\\(?:frac|sqrt|pi|cdot|log|ln|exp|(?:arc)?(?:sin|cos|tan|cot|sec|csc)|binom)(?![a-zA-Z])")
_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?|\\(?:theta|alpha|beta|lambda)")
# "|x - a|"; groups: x, the sign, a
_ABSOLUTE = re.compile(r"\|\s*([a-zA-Z])\s*(?:([-+])\s*([^|]+))?\|")
_POSITIVE = ("\\mathbbR^+", "\\mathbbR_+", "\\mathbbR^{+}", "\\mathbbR_{+}", "\\mathbbR_{>0}")  # squeezed
_REALS = ("\\mathbb{R}", "\\mathbbR", "\\R")
FLIP = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}


def sides_of(text: str) -> tuple[list[str], list[str]]:
    """The sides of a relation and the signs between them.

    Of an implication only the last statement counts, and `\\approx` and what follows it is dropped.

    >>> sides_of(r"x = \\frac13 \\approx 0.33")
    (['x', '\\\\frac13'], ['='])
    """
    split = split_top(text, _RELATION)
    if split is None:
        return [text], []
    sides, signs = [side.strip() for side in split[0]], split[1]
    for index in range(len(signs) - 1, -1, -1):
        if signs[index] in ("\\Rightarrow", "\\Leftrightarrow"):
            sides, signs = sides[index + 1 :], signs[index + 1 :]
            break
    if "\\approx" in signs:
        cut = signs.index("\\approx")
        # x \approx 3 has no exact value before the sign, so the 3 is the answer
        only_approximate = cut == 0 and (is_name(sides[0]) or not sides[0])
        sides, signs = (sides[1:2], []) if only_approximate else (sides[: cut + 1], signs[:cut])
    return sides, signs


def is_name(side: str) -> bool:
    """Whether a side names a quantity: `x`, `f(x)`, `\\angle ABC`, `\\text{Area}`."""
    return bool(_NAME.fullmatch(side)) and not _VALUE.search(side)


def is_quantity(side: str) -> bool:
    """Whether a side may be the quantity that a problem asks for: a name, `\\cos A`, `|z|` or `m + n`.

    `2x` and `x^2` are not: with a number and one unknown, this is an equation that is still to be solved.
    """
    if is_name(side):
        return True
    try:
        tree = parse_expression(side)
    except Unreadable:
        return False
    names = symbols(tree)
    if tree[0] == "call" and tree[1] in (*TRIG, "abs"):
        return bool(names) and not _has_number(tree)
    return len(names) > 1 and not _has_number(tree)


def _has_number(tree: Tree) -> bool:
    if tree[0] == "num":
        return True
    below = children(tree)[:1] if tree[0] == "pow" else children(tree)  # an exponent is not a coefficient
    return any(map(_has_number, below))


def difference(sides: list[str]) -> Tree:
    """The tree of the left side minus the right side. Raises Unreadable."""
    return ("add", parse_expression(sides[0]), ("neg", parse_expression(sides[1])))


def same_relation(gold: list[str], answer: list[str], gold_sign: str, answer_sign: str, bounded: bool) -> bool | None:
    """Whether one equation or inequality is a constant multiple of the other."""
    try:
        left, right = difference(gold), difference(answer)
        if symbols(left) != symbols(right) or not symbols(left):
            # x^2 + y^2 = C and x^2 + y^2 = K
            others = renamed(left, right) if gold_sign == answer_sign == "=" else ()
            return any(proportion(left, other, bounded) is not None for other in others)
        factor = proportion(left, right, bounded)
        if factor is None and (real_branch(left) is not left or real_branch(right) is not right):
            factor = proportion(real_branch(left), real_branch(right), bounded)
    except Unreadable:
        return False
    except TooLarge:
        return None
    if factor is None:
        return False
    return gold_sign == "=" == answer_sign or gold_sign == (answer_sign if factor > 0 else FLIP[answer_sign])


# inequalities -----------------------------------------------------------------------------------------


def as_range(part: Part) -> Part | None:
    """A part as an interval, a union of intervals, or all numbers but some; None where it is none of these."""
    if part.kind in ("union", "except") or (part.kind == "tuple" and len(part.items) == 2 and part.brackets[0] in "(["):
        return part
    if part.kind == "list":
        return _joined(part)
    if part.kind == "leaf":
        if squeeze(part.text) in _REALS or read_leaf(part.text).text == "all real numbers":
            return _interval(part.text, "-\\infty", "\\infty", "()")
        if squeeze(part.text) in _POSITIVE:
            return _interval(part.text, "0", "\\infty", "()")
        solved = inequality(part.text)
        return solved[1] if solved else None
    return None


def range_names(part: Part) -> frozenset[str]:
    """The variables that a range or its inequalities name; none for a bare interval."""
    if part.name:
        return frozenset({part.name})
    if part.kind == "leaf":
        solved = inequality(part.text)
        return frozenset({solved[0]}) if solved else frozenset()
    return frozenset().union(*map(range_names, part.items)) if part.kind in ("list", "union") else frozenset()


def _joined(part: Part) -> Part | None:
    """The range of a list of inequalities, such as `x > 1 \\text{ and } x < 3`."""
    solved = [inequality(text) if text else None for text in _with_names(part)]
    ranges = [each[1] for each in solved if each is not None]
    if len({each[0] for each in solved if each is not None}) > 1:
        return None  # x > 3, y < 4 is no set of numbers
    if len(ranges) < len(part.items):
        conditions = [item.text for item in part.items if item.kind == "leaf" and "\\mathbb" not in item.text]
        rest = [item for item in part.items if item.text in conditions]
        if rest and len(rest) < len(part.items):  # x \in \mathbb{R}, x \neq 0
            return as_range(rest[0] if len(rest) == 1 else Part("list", part.text, tuple(rest), part.brackets))
        return None
    if all(each.kind == "except" for each in ranges):
        return Part("except", part.text, tuple(item for each in ranges for item in each.items))
    if len(ranges) == 2 and part.brackets != "or" and (both := _overlap(*ranges)) is not None:
        return both
    return None if part.brackets == "and" else Part("union", part.text, tuple(ranges))


def same_numbers(gold: Part, answer: Part) -> bool:
    """Whether two ranges hold the same numbers, however they are cut into intervals."""
    left = _numbers(gold)
    right = _numbers(answer) if left else None
    return bool(left) and left is not None and right is not None and same_pieces(left, right)


def _numbers(part: Part) -> list[Piece] | None:
    """The numbers in a range or, of a list of conditions, those that meet all, or any where it says "or"."""
    if part.kind != "list":
        found = as_range(part)
        return pieces(found) if found is not None else None
    if len(range_names(part)) != 1:
        return None
    if part.brackets == "or":
        return _any_of(part)
    total: list[Piece] | None = None
    for item in part.items:
        each = _numbers(item)
        total = each if total is None or each is None else intersection(total, each)
        if not total:
            break
    if total or part.brackets == "and":
        return total
    found = as_range(part)  # x < 1, x > 3: no number meets both
    return pieces(found) if found is not None else None


def _any_of(part: Part) -> list[Piece] | None:
    """The numbers that meet one of several conditions, such as `x < 0 \\text{ or } x = 1`."""
    (name,) = range_names(part)
    items = []
    for item in part.items:
        sides, signs = sides_of(item.text) if item.kind == "leaf" else ([], [])
        if signs == ["="] and squeeze(sides[0]) == name:
            items.append(Part("set", item.text, (Part("leaf", sides[1]),)))
        elif (found := as_range(item)) is not None:
            items.append(found)
        else:
            return None
    return pieces(Part("union", part.text, tuple(items)))


def _with_names(part: Part) -> list[str]:
    """The items of a list as texts, "" for what is no leaf; the 1 of `x \\neq 0, 1` as `x \\neq 1`."""
    texts: list[str] = []
    excluding = ""
    for item in part.items:
        text = item.text if item.kind == "leaf" else ""
        head, sign, _ = text.partition("\\neq")
        if sign:
            excluding = head + sign
        elif excluding and text and not sides_of(text)[1]:
            text = f"{excluding} {text}"
        texts.append(text)
    return texts


def _overlap(left: Part, right: Part) -> Part | None:
    """`x > 1` and `x < 3` as one interval; None where they do not overlap."""
    if left.kind != "tuple" or right.kind != "tuple":
        return None
    if squeeze(left.items[0].text) == "-\\infty":
        left, right = right, left
    if squeeze(left.items[1].text) != "\\infty" or squeeze(right.items[0].text) != "-\\infty":
        return None
    low, high = left.items[0].text, right.items[1].text
    try:
        values = exact(parse_expression(low)), exact(parse_expression(high))
    except Unreadable:
        return None
    if values[0] is None or values[1] is None or values[0] >= values[1]:
        return None
    return _interval(f"{low}<{high}", low, high, left.brackets[0] + right.brackets[1])


def _interval(text: str, low: str, high: str, brackets: str) -> Part:
    return Part("tuple", text, (Part("leaf", low), Part("leaf", high)), brackets)


def inequality(text: str) -> tuple[str, Part] | None:
    """The variable and its range, such as ("x", (a, b]) for `a < x \\leq b`; None for anything else."""
    sides, signs = sides_of(text)
    if not signs or len(sides) > 3:
        return None
    if signs == ["\\neq"] and _VARIABLE.fullmatch(squeeze(sides[0])):
        points = tuple(Part("leaf", each) for each in sides[1].split(","))
        return squeeze(sides[0]), Part("except", text, points)
    if any(sign not in FLIP for sign in signs):
        return None
    if len(sides) == 2:
        return _one_sided(text, sides, signs[0])
    if signs[0] in (">", "\\geq"):
        sides, signs = sides[::-1], [FLIP[sign] for sign in reversed(signs)]
    name = squeeze(sides[1])
    if any(sign not in ("<", "\\leq") for sign in signs) or not _VARIABLE.fullmatch(name):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return name, _interval(text, sides[0], sides[2], brackets)


def _one_sided(text: str, sides: list[str], sign: str) -> tuple[str, Part] | None:
    if _VARIABLE.fullmatch(squeeze(sides[1])) and not _VARIABLE.fullmatch(squeeze(sides[0])):
        sides, sign = sides[::-1], FLIP[sign]
    name, bound = squeeze(sides[0]), sides[1]
    if (absolute := _ABSOLUTE.fullmatch(sides[0])) is not None:
        return absolute.group(1), _absolute(text, absolute, bound, sign)
    if not _VARIABLE.fullmatch(name):
        solved = _linear(sides, sign)
        if solved is None:
            return None
        name, bound, sign = solved
    if sign in (">", "\\geq"):
        return name, _interval(text, bound, "\\infty", ("(" if sign == ">" else "[") + ")")
    return name, _interval(text, "-\\infty", bound, "(" + (")" if sign == "<" else "]"))


def _absolute(text: str, match: re.Match[str], bound: str, sign: str) -> Part:
    """`|x - a| < c` for positive c."""
    shift = f"{'-' if match.group(2) == '+' else ''}({match.group(3)})" if match.group(2) else "0"
    low, high = f"{shift}-({bound})", f"{shift}+({bound})"
    if sign in ("<", "\\leq"):
        return _interval(text, low, high, "()" if sign == "<" else "[]")
    outer = ("()", "()") if sign == ">" else ("(]", "[)")
    return Part("union", text, (_interval(text, "-\\infty", low, outer[0]), _interval(text, high, "\\infty", outer[1])))


_SAMPLES = (Fraction(0), Fraction(1), Fraction(2), Fraction(-3), Fraction(7, 5))
"""Two values give the line, and the other three show that there is no other term."""


def _linear(sides: list[str], sign: str) -> tuple[str, str, str] | None:
    """`2x > 6` as ("x", "3", ">"); None where it is not linear in its only symbol with rational coefficients."""
    try:
        tree = difference(sides)
        names = symbols(tree)
        if len(names) != 1:
            return None
        (name,) = names
        values = [exact(substitute(tree, {name: ("num", sample)})) for sample in _SAMPLES]
    except Unreadable:
        return None
    at_zero, at_one = values[0], values[1]
    if at_zero is None or at_one is None or at_one == at_zero:
        return None
    slope = at_one - at_zero
    if any(value != at_zero + slope * sample for value, sample in zip(values, _SAMPLES, strict=True)):
        return None
    root = -at_zero / slope
    return name, f"{root.numerator}/{root.denominator}", sign if slope > 0 else FLIP[sign]
