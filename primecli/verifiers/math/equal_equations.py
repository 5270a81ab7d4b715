"""Whether two equations, or a value and an equation, say the same."""

from __future__ import annotations

import re

from primecli.verifiers.math.equal_values import Verdict, is_number, values_equal
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.relations import is_name, is_quantity, same_relation

# |AB|, |\vec{a}|, |z|: but |x| = 5 is an equation with two solutions
_LENGTH = re.compile(r"\|\s*(?:[A-Z]\s*[A-Z]|\\(?:overrightarrow|vec)\{[A-Za-z]+\}|z)\s*\|")


def equations_equal(gold: list[str], answer: list[str], bounded: bool) -> Verdict:
    """Compares two equations, or a value and an equation. gold, answer: their sides, one for a value."""
    if len(gold) == 1:
        if is_name(answer[-1]) and not is_name(answer[0]):
            answer = answer[::-1]
        if is_quantity(answer[0]) or _LENGTH.fullmatch(answer[0]):
            return values_equal(gold[0], answer[-1], bounded)
        verdicts = [values_equal(gold[0], side, bounded) for side in answer]
        return False if False in verdicts else None if None in verdicts else True
    if len(answer) == 1:
        names_one = is_name(gold[0]) or _LENGTH.fullmatch(gold[0]) or all(map(is_number, gold))
        return bool(names_one) and values_equal(gold[-1], answer[0], bounded)
    if is_name(gold[0]) and is_name(answer[0]):
        if (
            squeeze(gold[0]) == squeeze(answer[0])
            or _both_graphs(gold[0], answer[0])
            or _one_unknown(gold[0], answer[0])
        ):
            return values_equal(gold[-1], answer[-1], bounded)
        both_have_values = not (is_name(gold[1]) or is_name(answer[1]))
        if len(gold) == len(answer) == 2 and both_have_values and not {*gold[0]} & {*answer[1]}:
            return False
    if len(gold) == len(answer) == 2:
        return same_relation(gold, answer, "=", "=", bounded)
    return False


def _one_unknown(left: str, right: str) -> bool:
    """Whether one is `x` and the other `x_1`: without an index it can be any of the solutions."""
    return without_index(left) == without_index(right) in (squeeze(left), squeeze(right))


def _both_graphs(left: str, right: str) -> bool:
    """Whether one is `y` and the other `f(x)`: both name the graph of a function."""
    names = {squeeze(left), squeeze(right)}
    return "y" in names and any(re.fullmatch(r"[fghp]\(x\)", name) for name in names)


def without_index(name: str) -> str:
    """A name without its index: `x` for `x_1`, which is one of several solutions."""
    return re.sub(r"_\{?\d\}?$", "", squeeze(name))
