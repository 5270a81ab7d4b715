"""Whether two expressions have the same value: exactly, else to 200 digits at random points, else by sympy.

Numbers are never compared within a tolerance: 0.333 is not 1/3, and a tiny number is not zero. sympy and numbers of
unbounded size need a worker; everything else may run in the caller's process (`bounded`).
"""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

from primecli.verifiers.math.constants import INTEGER, renamed, same_classes, without_added_constant
from primecli.verifiers.math.equal_by_sympy import sympy_equal
from primecli.verifiers.math.evaluate import TooLarge, exact, numeric
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.tokens import Unreadable
from primecli.verifiers.math.tree import Tree, children, size, symbols

MAX_BOUNDED_NODES = 300
"""Of two trees together; larger ones take too long to evaluate eight times in the caller's process."""

_POINTS = 4  # at which two expressions must agree
_DIGITS = (60, 200)  # at which they are evaluated: enough to see a difference, then enough to see it vanish


def expressions_equal(gold: str, answer: str, bounded: bool) -> bool | None:
    """Whether two normalised expressions without units are equal.

    bounded: whether to give None, for undecided, rather than use sympy or numbers of unbounded size.

    Raises GoldUnreadable and AnswerUnreadable, unless `bounded`.
    """
    try:
        gold_tree = parse_expression(gold)
        answer_tree = parse_expression(answer)
        return trees_equal(gold_tree, answer_tree, bounded)
    except Unreadable:
        return None if bounded else sympy_equal(gold, answer)
    except TooLarge:
        return None


def trees_equal(gold: Tree, answer: Tree, bounded: bool) -> bool | None:
    """Whether two trees are equal. Raises Unreadable where one has no value, and TooLarge, if `bounded`."""
    infinite = [_has_infinity(tree) for tree in (gold, answer)]
    if any(infinite):
        return gold == answer
    left, right = exact(gold), exact(answer)
    if left is not None and right is not None:
        return left == right
    if bounded and size(gold) + size(answer) > MAX_BOUNDED_NODES:
        return None
    return _agree(gold, answer, bounded) or _agree_otherwise(gold, answer, bounded)


def _agree_otherwise(gold: Tree, answer: Tree, bounded: bool) -> bool:
    """Whether two trees that do not agree as they stand do so with real roots or with other names for constants."""
    real_gold, real_answer = real_branch(gold), real_branch(answer)
    if (real_gold is not gold or real_answer is not answer) and _agree(real_gold, real_answer, bounded):
        return True
    names = symbols(gold)
    if not names or names.isdisjoint(symbols(answer)):
        return False
    if INTEGER in names:
        return same_classes(gold, answer, bounded)
    if any(_agree(real_gold, real_branch(each), bounded) for each in renamed(gold, answer)):
        return True
    rest = without_added_constant(real_gold, real_answer)
    return rest is not None and _differ_by_constant(*rest, bounded)


def real_branch(tree: Tree) -> Tree:
    """The tree with real roots: x^{2/3} as the square of the cube root of x, which is real where x is negative.

    The same object where there is no such power.
    """
    below = [real_branch(child) if isinstance(child, tuple) else child for child in tree[1:]]
    if any(new is not old for new, old in zip(below, tree[1:], strict=True)):
        tree = (tree[0], *below)
    if tree[0] == "pow" and (exponent := exact(tree[2])) is not None:
        degree = exponent.denominator
        if degree > 1 and degree % 2 == 1:
            root = ("call", "root", tree[1], ("num", Fraction(degree)))
            return ("pow", root, ("num", Fraction(exponent.numerator)))
    return tree


def _has_infinity(tree: Tree) -> bool:
    return tree == ("sym", "\\infty") or any(map(_has_infinity, children(tree)))


def _points(names: frozenset[str]) -> list[dict[str, Fraction]]:
    """Values for the symbols: the same each time, of both signs, not integers, and between 0.5 and 3 in size."""
    random = Random(20)
    points = []
    for index in range(_POINTS):
        point = {}
        for name in sorted(names):
            value = Fraction(random.randrange(10_007, 60_013), 20_011)  # a prime: hardly anything cancels by chance
            # the first two points are positive: roots and logarithms may have values nowhere else
            point[name] = value if index < 2 or random.random() < 0.5 else -value
        points.append(point)
        if not names:
            break  # without symbols all points are the same
    return points


def _evaluate(tree: Tree, point: dict[str, Fraction], digits: int, bounded: bool) -> Any:
    import mpmath

    with mpmath.workdps(digits):
        values = {name: mpmath.mpf(value.numerator) / value.denominator for name, value in point.items()}
        return numeric(tree, values, bounded)


def _agree(left: Tree, right: Tree, bounded: bool) -> bool:
    """Whether two trees have the same value at every point. Raises Unreadable where they have none at any point."""
    tried = 0
    for point in _points(symbols(left) | symbols(right)):
        try:
            if not _same_value(left, right, point, bounded):
                return False
            tried += 1
        except Unreadable:
            continue
    if tried == 0:
        raise Unreadable("no value anywhere")
    return True


def _differ_by_constant(left: Tree, right: Tree, bounded: bool) -> bool:
    """Whether two trees differ by the same number at every point."""
    import mpmath

    first: Any = None
    tried = 0
    for point in _points(symbols(left)):
        try:
            a, b = (_evaluate(tree, point, 60, bounded) for tree in (left, right))
        except Unreadable:
            continue
        with mpmath.workdps(60):
            first = a - b if first is None else first
            if abs(a - b - first) > mpmath.mpf(10) ** -45 * max(abs(a), abs(b), 1):
                return False
        tried += 1
    return tried > 1


def _same_value(left: Tree, right: Tree, point: dict[str, Fraction], bounded: bool) -> bool:
    """Whether two values differ by rounding only: by little beside their size, or by less the higher the precision.

    The second is for values that cancel to zero, and so have no size to compare the difference with.
    """
    import mpmath

    differences = []
    relative = True
    for digits in _DIGITS:
        a, b = (_evaluate(tree, point, digits, bounded) for tree in (left, right))
        with mpmath.workdps(digits):
            difference = abs(a - b)
            relative &= bool(difference <= mpmath.mpf(10) ** (-2 * digits // 3) * max(abs(a), abs(b)))
            differences.append(difference)
            if digits == _DIGITS[0] and difference > mpmath.mpf(10) ** -20 * max(abs(a), abs(b), 1):
                return False
    coarse, fine = differences
    return relative or bool(fine <= coarse * mpmath.mpf(10) ** -80)


def proportion(left: Tree, right: Tree, bounded: bool) -> int | None:
    """The sign of the constant c for which left = c · right at every point; None where there is no such constant."""
    import mpmath

    first: Any = None
    for point in _points(symbols(left)):
        a, b = (_evaluate(tree, point, 60, bounded) for tree in (left, right))
        if abs(a) < mpmath.mpf(10) ** -30 or abs(b) < mpmath.mpf(10) ** -30:
            return None
        with mpmath.workdps(60):
            ratio = a / b
            if first is not None and abs(ratio - first) > abs(first) * mpmath.mpf(10) ** -40:
                return None
        first = ratio if first is None else first
    return 1 if mpmath.re(first) > 0 else -1
