"""Whether two vectors or two sums with dots are equal."""

from __future__ import annotations

from primecli.verifiers.math.equal_expressions import expressions_equal, trees_equal
from primecli.verifiers.math.equal_values import Verdict
from primecli.verifiers.math.evaluate import TooLarge
from primecli.verifiers.math.matrices import components
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.parts import Part
from primecli.verifiers.math.sequences import DOTS, terms_around_dots
from primecli.verifiers.math.tokens import Unreadable


def vectors_equal(vector: Part, leaf: Part, bounded: bool) -> Verdict:
    """Compares (1, -2, 3) or a column with i - 2j + 3k."""
    if vector.name or (vector.brackets != "()" if vector.kind == "tuple" else vector.brackets != "1"):
        return False
    parts = components(leaf.text.split("=")[-1], len(vector.items))
    if parts is None or any(item.kind != "leaf" for item in vector.items):
        return False
    try:
        verdicts = [
            trees_equal(parse_expression(item.text), part, bounded)
            for item, part in zip(vector.items, parts, strict=True)
        ]
    except (Unreadable, TooLarge):
        return False
    return False if False in verdicts else None if None in verdicts else True


def sums_equal(gold: str, answer: str) -> bool:
    """Compares `1 + 2 + \\ldots + n` term by term, since nothing says what its dots stand for."""
    sums = [terms_around_dots(text.split("=")[-1]) for text in (gold, answer)]
    if sums[0] is None or sums[1] is None or sums[0][1] != sums[1][1]:
        return False
    return all(
        squeeze(left) == squeeze(right) or (DOTS not in left and bool(expressions_equal(left, right, bounded=True)))
        for left, right in zip(sums[0][0], sums[1][0], strict=True)
    )
