"""Matrices, what sums, products, powers and transposes of explicit matrices come to, and vectors in i, j and k."""

from __future__ import annotations

import re
from fractions import Fraction

from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.tokens import Unreadable
from primecli.verifiers.math.tree import Tree, symbols

MAX_SIZE = 6
"""Rows and columns of a matrix that is multiplied."""

MAX_CELL_CHARS = 2000
"""Of a cell of a sum or product, whose cells are put together as text."""

Matrix = list[list[str]]
"""Its rows; a cell is an expression."""

_BLOCK = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[^{}]*\})?((?:(?!\\begin).)*?)\\end\{\1\}", re.DOTALL)
_WRAPPED = re.compile(r"[(\[]\s*(\\begin\{array\}(?:(?!\\end).)*\\end\{array\})\s*[)\]]", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\[[^\]]{0,12}\])?")
_EXPONENT = re.compile(r"\s*\^\s*\{?\s*(?:([2-6])|(?:\\text\{\s*)?(?:T|\\top|\\intercal)\s*\}?)\s*\}?(?![\da-zA-Z])")
_TIMES = re.compile(r"\s*(?:\\cdot(?![a-zA-Z])|\*)?\s*")
TRANSPOSED = re.compile(r"\^\s*\{?\s*(?:\\text\{\s*)?(?:T|\\top|\\intercal)\s*\}?\s*\}?$")


def has_matrix(s: str) -> bool:
    """Whether an answer has an explicit matrix."""
    return "\\begin" in s and _BLOCK.search(s) is not None


def read_matrix(s: str) -> Matrix | None:
    """The matrix that an expression with explicit matrices comes to; None where it is not one, or too large.

    >>> read_matrix(r"2\\begin{pmatrix} 1 & x \\end{pmatrix}")
    [['(2)(1)', '(2)(x)']]
    """
    s = _WRAPPED.sub(r"\1", s)
    blocks = list(_BLOCK.finditer(s))
    total: Matrix | None = None
    product: Matrix | None = None
    position = 0
    sign = ""
    factor = ""
    for block in blocks:
        between = _TIMES.sub("", s[position : block.start()], count=1).strip()
        rows = _rows(block.group(2))
        if rows is None:
            return None
        if product is not None and between:  # a new term
            if between[0] not in "+-":
                return None
            total = _add(total, product, sign, factor)
            if total is None:
                return None
            product = None
        if product is None:
            signed = between[:1] in ("+", "-")
            sign, factor = (between[0], between[1:]) if signed else ("", between)
            factor = re.sub(r"(?:\\cdot|\*)\s*$", "", factor).strip()
            if total is not None and not signed:
                return None
        exponent = _EXPONENT.match(s, block.end())
        position = exponent.end() if exponent else block.end()
        power = _power(rows, exponent)
        product = power if product is None or power is None else _multiply(product, power)
        if product is None:
            return None
    if product is None or s[position:].strip():
        return None
    return _add(total, product, sign, factor)


def _rows(body: str) -> Matrix | None:
    """The rows of a matrix; None where they differ in length or hold brackets that do not balance."""
    rows = [[cell.strip() for cell in row.split("&")] for row in _ROW.split(body) if row.strip()]
    widths = {len(row) for row in rows}
    balanced = all(cell.count("{") == cell.count("}") for row in rows for cell in row)
    return rows if len(widths) == 1 and balanced else None


def _power(rows: Matrix, exponent: re.Match[str] | None) -> Matrix | None:
    if exponent is None:
        return rows
    if exponent.group(1) is None:
        return transposed(rows)
    product: Matrix | None = rows
    for _ in range(int(exponent.group(1)) - 1):
        product = _multiply(product, rows) if product is not None else None
    return product


def transposed(rows: Matrix) -> Matrix:
    """The matrix with rows and columns swapped."""
    return [list(column) for column in zip(*rows, strict=True)]


def _multiply(left: Matrix, right: Matrix) -> Matrix | None:
    if len(left[0]) != len(right) or max(len(left), len(right), len(right[0])) > MAX_SIZE:
        return None
    columns = transposed(right)
    return _bounded(
        [["+".join(f"({a})({b})" for a, b in zip(row, column, strict=True)) for column in columns] for row in left]
    )


def _add(total: Matrix | None, product: Matrix, sign: str, factor: str) -> Matrix | None:
    """The sum so far and one more term, a product of matrices times a factor."""
    if "=" in factor or "\\begin" in factor:
        return None
    if sign == "-":
        factor = f"-({factor})" if factor else "-1"
    scaled = [[f"({factor})({cell})" for cell in row] for row in product] if factor else product
    if total is None:
        return _bounded(scaled)
    if len(total) != len(scaled) or len(total[0]) != len(scaled[0]):
        return None
    rows = zip(total, scaled, strict=True)
    return _bounded([[f"({a})+({b})" for a, b in zip(*each, strict=True)] for each in rows])


def _bounded(rows: Matrix) -> Matrix | None:
    return rows if all(len(cell) <= MAX_CELL_CHARS for row in rows for cell in row) else None


# vectors in i, j and k ------------------------------------------------------------------------------------

_UNITS = ("i", "j", "k")
_NOUGHT: Tree = ("num", Fraction(0))


def components(text: str, count: int) -> list[Tree] | None:
    """The components of a vector such as `i - 2j + 3k`; None where it is not one of so many components.

    A vector without j and k may be a complex number.

    >>> components("i - 2j", 2)
    [('num', Fraction(1, 1)), ('neg', ('num', Fraction(2, 1)))]
    """
    if count not in (2, 3) or not re.search("[jk]", text):
        return None
    try:
        tree = parse_expression(text)
    except Unreadable:
        return None
    if not symbols(tree) & {"j", "k"}:
        return None
    parts = _linear(tree)
    if parts is None or (count == 2 and "k" in parts):
        return None
    return [parts.get(unit, _NOUGHT) for unit in _UNITS[:count]]


def _linear(tree: Tree) -> dict[str, Tree] | None:
    """What each of i, j and k is multiplied by in a sum of multiples of them; None for anything else."""
    kind = tree[0]
    if kind == "sym":
        return {tree[1]: ("num", Fraction(1))} if tree[1] in _UNITS else None
    if kind == "neg":
        below = _linear(tree[1])
        return {unit: ("neg", each) for unit, each in below.items()} if below else None
    if kind == "add":
        found: dict[str, Tree] = {}
        for term in tree[1:]:
            below = _linear(term)
            if below is None:
                return None
            for unit, each in below.items():
                found[unit] = ("add", found[unit], each) if unit in found else each
        return found
    if kind in ("mul", "div"):
        for vector, factor in ((tree[1], tree[2]), (tree[2], tree[1]))[: 2 if kind == "mul" else 1]:
            if _has_unit(factor):
                continue
            below = _linear(vector)
            if below is not None:
                return {unit: _times(kind, each, factor) for unit, each in below.items()}
    return None


def _times(kind: str, component: Tree, factor: Tree) -> Tree:
    return factor if kind == "mul" and component == ("num", Fraction(1)) else (kind, component, factor)


def _has_unit(tree: Tree) -> bool:
    if tree[0] == "sym":
        return tree[1] in _UNITS
    return any(_has_unit(child) for child in tree[1:] if isinstance(child, tuple))
