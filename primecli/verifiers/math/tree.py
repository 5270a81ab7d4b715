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


def substitute(tree: Tree, values: dict[str, Tree]) -> Tree:
    """The tree with a tree in the place of each symbol that `values` names.

    >>> substitute(("neg", ("sym", "x")), {"x": ("sym", "y")})
    ('neg', ('sym', 'y'))
    """
    if tree[0] == "sym":
        return values.get(tree[1], tree)
    return (tree[0], *(substitute(child, values) if isinstance(child, tuple) else child for child in tree[1:]))


def size(tree: Tree) -> int:
    """How many nodes a tree has."""
    return 1 + sum(map(size, children(tree)))
