"""Whether two expressions have one value: exactly, to 200 digits at random points, or by sympy.

Numbers are never compared within a tolerance: 0.333 is not 1/3, and what is small is not zero. A worker is needed
for sympy and for numbers of unbounded size; the rest may run in the caller's process.
"""

from __future__ import annotations

import re
from fractions import Fraction
from random import Random
from typing import Any

from primecli.verifiers.math.evaluate import Untame, exact, numeric
from primecli.verifiers.math.parse import MAX_DEPTH, Tree, Unreadable, parse_expression, size, symbols


class GoldUnreadable(Exception):
    """The gold answer is in no language that this module reads: the data's fault, not the model's."""


class AnswerUnreadable(Exception):
    """The model's answer is in no language that this module reads."""


MAX_TAME_NODES = 300


def math_equal(gold: str, answer: str, slow: bool) -> bool | None:
    """Whether two normalised expressions without units are equal; None (only without `slow`) for undecided.

    Raises GoldUnreadable and AnswerUnreadable, with `slow`.
    """
    try:
        gold_tree = parse_expression(gold)
        answer_tree = parse_expression(answer)
        return _trees_equal(gold_tree, answer_tree, slow)
    except Unreadable:
        return _sympy_equal(gold, answer) if slow else None
    except Untame:
        return None


def _trees_equal(gold: Tree, answer: Tree, slow: bool) -> bool | None:
    infinite = [_has_infinity(tree) for tree in (gold, answer)]
    if any(infinite):
        return gold == answer
    left, right = exact(gold), exact(answer)
    if left is not None and right is not None:
        return left == right
    if not slow and size(gold) + size(answer) > MAX_TAME_NODES:
        return None
    return _agree(gold, answer, tame=not slow)


def _has_infinity(tree: Tree) -> bool:
    return tree == ("sym", "\\infty") or any(_has_infinity(child) for child in tree[1:] if isinstance(child, tuple))


_POINTS = 4


def _points(names: frozenset[str]) -> list[dict[str, Fraction]]:
    """Values for the symbols: the same each time, of both signs, no integers, of moderate size."""
    random = Random(20)
    points = []
    for index in range(_POINTS):
        point = {}
        for name in sorted(names):
            value = Fraction(random.randrange(10_007, 60_013), 20_011)
            point[name] = value if index < 2 or random.random() < 0.5 else -value
        points.append(point)
        if not names:
            break
    return points


def _evaluate(tree: Tree, point: dict[str, Fraction], digits: int, tame: bool) -> Any:
    import mpmath

    with mpmath.workdps(digits):
        values = {name: mpmath.mpf(value.numerator) / value.denominator for name, value in point.items()}
        return numeric(tree, values, tame)


def _agree(left: Tree, right: Tree, tame: bool) -> bool:
    """Whether two trees have one value at every point. Raises Unreadable where no point gives a value."""
    tried = 0
    for point in _points(symbols(left) | symbols(right)):
        try:
            if not _same_value(left, right, point, tame):
                return False
            tried += 1
        except Unreadable:
            continue
    if tried == 0:
        raise Unreadable("no value anywhere")
    return True


def _same_value(left: Tree, right: Tree, point: dict[str, Fraction], tame: bool) -> bool:
    """Whether the difference is rounding: tiny beside the values, or shrinking as the precision grows.

    The second is for values that cancel to zero, which have no size of their own to compare with.
    """
    import mpmath

    differences = []
    relative = True
    for digits in (60, 200):
        a, b = (_evaluate(tree, point, digits, tame) for tree in (left, right))
        with mpmath.workdps(digits):
            difference = abs(a - b)
            relative &= bool(difference <= mpmath.mpf(10) ** (-2 * digits // 3) * max(abs(a), abs(b)))
            differences.append(difference)
            if digits == 60 and difference > mpmath.mpf(10) ** -20 * max(abs(a), abs(b), 1):
                return False
    coarse, fine = differences
    return relative or bool(fine <= coarse * mpmath.mpf(10) ** -80)


def proportion(left: Tree, right: Tree, tame: bool) -> int | None:
    """The sign of the constant c with left = c · right at every point; None where there is none."""
    first: Any = None
    import mpmath

    for point in _points(symbols(left)):
        a, b = (_evaluate(tree, point, 60, tame) for tree in (left, right))
        if abs(a) < mpmath.mpf(10) ** -30 or abs(b) < mpmath.mpf(10) ** -30:
            return None
        with mpmath.workdps(60):
            ratio = a / b
            if first is not None and abs(ratio - first) > abs(first) * mpmath.mpf(10) ** -40:
                return None
        first = ratio if first is None else first
    return 1 if mpmath.re(first) > 0 else -1


# what the grammar does not read -----------------------------------------------------------------------

# The LaTeX parser is asked only for what it knows better: of a text that is no expression at all it makes one
# all too readily ("2 3" becomes 5, and "7'" becomes 7).
_BEYOND = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|det|max|min|gcd|lcm|bmod|pmod|mod|bar|overline|vec|hat|begin|mathbb|mathcal"
    r"|setminus|backslash|cap|cup|choose|partial|nabla|wedge|vee|neg|in|notin|subset|subseteq|ldots|cdots|dots)"
    r"(?![a-zA-Z])"
)
_MISREAD = re.compile(r"\d\s+\d|\d'")

_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)")


def _sympy_equal(gold: str, answer: str) -> bool:
    """Compares by sympy what it can prove equal. Raises GoldUnreadable, AnswerUnreadable.

    What sympy raises goes on to the caller: a comparison that it could not make is no wrong answer.
    """
    from sympy import Expr, MatrixBase, S, Set, simplify

    try:
        left = _sympy_tree(gold, GoldUnreadable)
    except GoldUnreadable:
        if "\\" in gold or not re.search(r"\w", gold) or _nesting(gold) != 0 != gold.count("(") - gold.count(")"):
            raise
        return False  # plain text that is no expression, such as 8:00: only its own spelling equals it
    right = _sympy_tree(answer, AnswerUnreadable)
    if left == right:
        return True
    if isinstance(left, Set) and isinstance(right, Set):
        return bool(left.symmetric_difference(right) == S.EmptySet)
    if isinstance(left, MatrixBase) and isinstance(right, MatrixBase) and left.shape == right.shape:
        return bool(simplify(left - right).is_zero_matrix)
    if isinstance(left, Expr) and isinstance(right, Expr):
        return bool(simplify(left - right) == 0)
    return False


def _sympy_tree(text: str, failure: type[Exception]) -> Any:
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Basic, MatrixBase, nan, zoo

    try:
        return _as_sympy(parse_expression(text))
    except Unreadable:
        if not _BEYOND.search(text) or _MISREAD.search(text) or _nesting(text) > MAX_DEPTH:
            raise failure(f"cannot be read: {text[:200]}") from None
    text = _DECIMAL.sub(lambda m: f"\\frac{{{m.group(1)}{m.group(2)}}}{{1{'0' * len(m.group(2))}}}", text)
    try:
        tree = latex2sympy(text, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False))
    except MemoryError:
        raise
    except Exception as error:  # the parser raises bare Exception for text that it does not know
        raise failure(f"cannot be read: {text[:200]}") from error
    if not isinstance(tree, Basic | MatrixBase) or tree in (nan, zoo):
        raise failure(f"has no value: {text[:200]}")
    return tree


def _nesting(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _as_sympy(tree: Tree) -> Any:
    """The same expression in sympy, unevaluated where a number could grow."""
    import sympy

    kind = tree[0]
    if kind == "num":
        return sympy.Rational(tree[1].numerator, tree[1].denominator)
    if kind == "sym":
        constants = {"\\pi": sympy.pi, "e": sympy.E, "i": sympy.I, "\\infty": sympy.oo}
        return constants.get(tree[1], sympy.Symbol(tree[1].lstrip("\\")))
    arguments = [_as_sympy(child) for child in tree[1:] if isinstance(child, tuple)]
    a, b = arguments[0], arguments[-1]
    if kind == "call":
        name = {"abs": "Abs", "floor": "floor", "ceil": "ceiling", "binom": "binomial", "ln": "log"}.get(
            tree[1], tree[1]
        )
        if name == "root":
            return sympy.Pow(a, 1 / b)
        if name == "logb":
            return sympy.log(a) / sympy.log(b)
        name = re.sub("^arc", "a", str(name))
        return getattr(sympy, name)(*arguments)
    if kind == "fact":
        return sympy.factorial(a, evaluate=False)
    if kind == "pow":
        return sympy.Pow(a, b, evaluate=bool(b.is_Integer and abs(b) < 1000))
    if kind == "add":
        return sympy.Add(*arguments)
    return {"neg": -a, "mul": a * b}[kind] if kind != "div" else a / b
