"""Compares expressions that `parse` does not read, such as sums, integrals, limits and matrices, by sympy.

sympy may take any time and memory, so this runs in workers only; the deadline is that of `GradingPool`.
"""

from __future__ import annotations

import re
from typing import Any

from primecli.verifiers.math.parse import MAX_DEPTH, parse_expression
from primecli.verifiers.math.tokens import Unreadable
from primecli.verifiers.math.tree import Tree, children


class GoldUnreadable(Exception):
    """The gold answer is in no notation that can be read: the data's fault, not the model's."""


class AnswerUnreadable(Exception):
    """The model's answer is in no notation that can be read."""


# The LaTeX parser gets only notation that `parse` lacks, since it makes an expression of any text ("2 3" becomes 5,
# and "7'" becomes 7).
_ONLY_SYMPY_READS = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|det|max|min|gcd|lcm|bmod|pmod|mod|bar|overline|vec|hat|begin|mathbb|mathcal"
    r"|setminus|backslash|cap|cup|choose|partial|nabla|wedge|vee|neg|in|notin|subset|subseteq|ldots|cdots|dots)"
    r"(?![a-zA-Z])"
)
_MISREAD = re.compile(r"\d\s+\d|\d'")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)")  # becomes a fraction: the parser would make it a float


def sympy_equal(gold: str, answer: str) -> bool:
    """Whether sympy can show that two normalised expressions are equal. Raises GoldUnreadable, AnswerUnreadable.

    Exceptions of sympy reach the caller: a comparison that it could not make does not show that the answer is wrong.
    """
    try:
        left = _sympy_tree(gold, GoldUnreadable)
    except GoldUnreadable:
        if "\\" in gold or not re.search(r"\w", gold) or _nesting(gold) != 0 != gold.count("(") - gold.count(")"):
            raise
        return False  # plain text that is not an expression, such as 8:00: only the same spelling equals it
    right = _sympy_tree(answer, AnswerUnreadable)
    try:
        return _same(left, right)
    except TypeError:
        return False  # they are of different kinds, such as a number and a power of a matrix
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        if _has_value(left) and not _has_value(right):  # such as 10 mod 0
            raise AnswerUnreadable(f"has no value: {answer[:200]}") from error
        raise


def _has_value(tree: Any) -> bool:
    """Whether sympy can simplify a tree, rather than divide by zero and the like."""
    from sympy import simplify

    try:
        simplify(tree)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False
    return True


def _same(left: Any, right: Any) -> bool:
    from sympy import Expr, MatrixBase, MatrixExpr, S, Set, simplify

    if isinstance(left, MatrixBase | MatrixExpr) != isinstance(right, MatrixBase | MatrixExpr):
        return False
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
    except (ArithmeticError, ValueError) as error:  # such as 10 mod 0
        raise failure(f"has no value: {text[:200]}") from error
    except Unreadable:
        if not _ONLY_SYMPY_READS.search(text) or _MISREAD.search(text) or _nesting(text) > MAX_DEPTH:
            raise failure(f"cannot be read: {text[:200]}") from None
    text = _DECIMAL.sub(lambda m: f"\\frac{{{m.group(1)}{m.group(2)}}}{{1{'0' * len(m.group(2))}}}", text)
    try:
        tree = latex2sympy(text, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False))
    except MemoryError:
        raise
    except Exception as error:  # the parser raises plain Exception for text that it does not read
        raise failure(f"cannot be read: {text[:200]}") from error
    if not isinstance(tree, Basic | MatrixBase) or tree in (nan, zoo):
        raise failure(f"has no value: {text[:200]}")
    return tree


def _nesting(text: str) -> int:
    """How deep the brackets of a text are nested."""
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _as_sympy(tree: Tree) -> Any:
    """The same expression in sympy, left unevaluated where a number could grow huge."""
    import sympy

    kind = tree[0]
    if kind == "num":
        return sympy.Rational(tree[1].numerator, tree[1].denominator)
    if kind == "sym":
        constants = {"\\pi": sympy.pi, "e": sympy.E, "i": sympy.I, "\\infty": sympy.oo}
        return constants.get(tree[1], sympy.Symbol(tree[1].lstrip("\\")))
    arguments = [_as_sympy(child) for child in children(tree)]
    a, b = arguments[0], arguments[-1]
    if kind == "call":
        name = {"abs": "Abs", "floor": "floor", "ceil": "ceiling", "binom": "binomial", "ln": "log"}.get(
            tree[1], tree[1]
        )
        if name == "root":
            return sympy.Pow(a, 1 / b)
        if name == "logb":
            return sympy.log(a) / sympy.log(b)
        if name == "mod":
            return sympy.Mod(a, b)
        if name == "cis":
            return sympy.exp(sympy.I * a)
        name = re.sub("^arc", "a", str(name))
        return getattr(sympy, name)(*arguments)
    if kind == "fact":
        return sympy.factorial(a, evaluate=False)
    if kind == "pow":
        return sympy.Pow(a, b, evaluate=bool(b.is_Integer and abs(b) < 1000))  # 9^(9^9) would fill the memory
    if kind == "add":
        return sympy.Add(*arguments)
    return {"neg": -a, "mul": a * b}[kind] if kind != "div" else a / b
