"""An expression as a tree of tuples, and what can be asked of one."""

from __future__ import annotations

from typing import Any

Tree = tuple[Any, ...]
"""("num", Fraction), ("sym", name), ("add", a, b, …), ("mul", a, b), ("div", a, b), ("pow", a, b), ("neg", a),
("fact", a) or ("call", name, a, …), where a and b are trees."""


def children(tree: Tree) -> list[Tree]:
    """The trees directly below this one."""
    return [child for child in tree[1:] if isinstance(child, tuple)]


def operation(tree: Tree) -> str:
    """What a tree that has children does with them, such as add or, of a call, sin."""
    name: str = tree[1] if tree[0] == "call" else tree[0]
    return name


def symbols(tree: Tree) -> frozenset[str]:
    """Names of the free symbols of a tree; π, e and i are constants.

    >>> sorted(symbols(("mul", ("sym", "x"), ("sym", "\\\\pi"))))
    ['x']
    """
    if tree[0] == "sym":
        return frozenset() if tree[1] in ("\\pi", "e", "i", "\\infty") else frozenset({tree[1]})
    return frozenset().union(*map(symbols, children(tree)))


def size(tree: Tree) -> int:
    """How many nodes a tree has."""
    return 1 + sum(map(size, children(tree)))
