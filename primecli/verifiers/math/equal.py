"""Whether an answer equals the gold answer, LaTeX or plain.

Precision comes before recall: a wrong answer that is rewarded teaches the model, a right one that is missed
costs a little signal. So numbers are compared exactly, never within a tolerance: 0.333 is not 1/3 and 3.14 is
not \\pi. Expressions count as equal when they agree to 60 and again to 200 digits at random points.

Each comparison gives True, False, or None for undecided: the cheap part, which may run in the caller's process,
leaves to a worker what needs sympy or numbers of unbounded size.
"""

from __future__ import annotations

import re

from primecli.verifiers.math.algebra import math_equal
from primecli.verifiers.math.normalize import normalize, squeeze
from primecli.verifiers.math.parts import Part, read_parts
from primecli.verifiers.math.quantity import read_leaf
from primecli.verifiers.math.relations import FLIP, as_range, inequality, is_name, is_quantity, same_relation, sides_of
from primecli.verifiers.math.values import values_equal

Verdict = bool | None


def equal(gold: str, answer: str, slow: bool = False) -> Verdict:
    """Whether `answer` equals `gold`; None (only without `slow`) where that takes sympy or large numbers.

    >>> equal(r"\\frac{1}{2}", "0.5"), equal("10000", "9999"), equal(r"\\pi", "3.14")
    (True, False, False)

    Raises GoldUnreadable and AnswerUnreadable, with `slow`.
    """
    if {_currency(gold), _currency(answer)} == {"dollar", "cent"}:
        return False
    gold, answer = normalize(gold), normalize(answer)
    if not answer:
        return False
    if squeeze(gold) == squeeze(answer):
        return True
    undecided = False
    for gold_part in read_parts(gold):
        for answer_part in read_parts(answer):
            verdict = _parts_equal(gold_part, answer_part, slow)
            if verdict:
                return True
            undecided |= verdict is None
    return None if undecided else False


_DOLLAR = re.compile(r"\\\$|^\s*\$[^$]*$")
_CENT = re.compile(r"\d\s*(?:\\text\{|\\mathrm\{)?\s*(?:cents?\b|¢)")


def _currency(text: str) -> str:
    return "dollar" if _DOLLAR.search(text) else "cent" if _CENT.search(text) else ""


def check_readable(gold: str) -> None:
    """Reads a gold answer as `equal` does with `slow`, evaluating it. Raises GoldUnreadable."""
    for part in read_parts(normalize(gold)):
        _check_part(part)


def _check_part(part: Part) -> None:
    for item in part.items:
        _check_part(item)
    if part.kind == "leaf" and part.text:
        for side in sides_of(part.text)[0]:
            leaf = read_leaf(side)
            if leaf.kind == "math":
                math_equal(leaf.text, leaf.text, slow=True)


# parts ------------------------------------------------------------------------------------------------


def _parts_equal(gold: Part, answer: Part, slow: bool) -> Verdict:
    kinds = (gold.kind, answer.kind)
    if kinds == ("leaf", "leaf"):
        return _leaves_equal(gold.text, answer.text, slow)
    if kinds == ("tuple", "tuple"):
        return gold.brackets == answer.brackets and _in_order(gold, answer, slow)
    if kinds == ("matrix", "matrix"):
        return gold.brackets == answer.brackets and _in_order(gold, answer, slow)
    if kinds in (("matrix", "tuple"), ("tuple", "matrix")):
        matrix, other = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        vector = matrix.brackets == "1" or int(matrix.brackets) == len(matrix.items)
        return (
            vector
            and (other.brackets == "()" or (other.brackets == "[]" and other is answer))
            and (_in_order(gold, answer, slow))
        )
    if kinds in (("union", "union"), ("list", "list"), ("list", "set"), ("set", "list"), ("set", "set")):
        return _any_order(gold, answer, slow, repeats="set" in kinds)
    if kinds == ("leaf", "list") and answer.brackets == "or":
        return _all_equal(gold, answer, slow)
    if kinds in (("tuple", "list"), ("list", "tuple")):
        if _ranges_equal(gold, answer, slow):
            return True
        # a bare list against an ordered pair: accepted in order only, and never against an interval
        return "()" in (gold.brackets, answer.brackets) and _in_order(gold, answer, slow)
    if "set" in kinds and "leaf" in kinds:
        single, other = (gold, answer) if gold.kind == "set" else (answer, gold)
        if len(single.items) == 1:
            pair = (single.items[0], other) if gold.kind == "set" else (other, single.items[0])
            return _parts_equal(*pair, slow)
        if not single.items:
            return values_equal("\\emptyset", other.text, slow)
        return False
    return _ranges_equal(gold, answer, slow)


def _ranges_equal(gold: Part, answer: Part, slow: bool) -> Verdict:
    """`x > 3` against `(3, \\infty)`, `x<-1 or x>1` against a union, `x \\neq 0` against two open half lines."""
    left, right = as_range(gold), as_range(answer)
    if left is None or right is None:
        return False
    if "except" in (left.kind, right.kind):
        left, right = _but_points(left), _but_points(right)
        return left is not None and right is not None and _any_order(left, right, slow, repeats=True)
    if left.kind != right.kind or (left is gold and right is answer):
        return False
    return _parts_equal(left, right, slow)


def _but_points(part: Part) -> Part | None:
    """The points that a range leaves out, as a set: open intervals that touch, from end to end."""
    if part.kind == "except":
        return Part("set", part.text, part.items)
    if part.kind != "union" or any(item.kind != "tuple" or item.brackets != "()" for item in part.items):
        return None
    after = {squeeze(item.items[0].text): item.items[1] for item in part.items if len(item.items) == 2}
    points: list[Part] = []
    at = after.pop("-\\infty", None)
    while at is not None and squeeze(at.text) not in ("\\infty", "+\\infty"):
        points.append(at)
        at = after.pop(squeeze(at.text), None)
    return Part("set", part.text, tuple(points)) if at is not None and not after and points else None


def _all_equal(gold: Part, answer: Part, slow: bool) -> Verdict:
    """`\\frac12 or 0.5`: one value in several spellings."""
    verdicts = [_parts_equal(gold, item, slow) for item in answer.items]
    if False in verdicts:
        return _ranges_equal(gold, answer, slow)
    return None if None in verdicts else True


def _in_order(gold: Part, answer: Part, slow: bool) -> Verdict:
    if len(gold.items) != len(answer.items):
        return False
    undecided = False
    for left, right in zip(gold.items, answer.items, strict=True):
        verdict = _parts_equal(left, right, slow)
        if verdict is False:
            return False
        undecided |= verdict is None
    return None if undecided else True


_MAX_UNORDERED = 30


def _any_order(gold: Part, answer: Part, slow: bool, repeats: bool) -> Verdict:
    """Each item of one has its own equal in the other; in sets a repeated item counts once."""
    if _all_named(gold) and not any("=" in item.text for item in answer.items):
        return _in_order(gold, answer, slow)  # which of two bare values is y, only their order says
    left, right = list(gold.items), list(answer.items)
    if max(len(left), len(right)) > _MAX_UNORDERED:
        return False
    if repeats:
        left, right = _distinct(left), _distinct(right)
    if len(left) != len(right):
        return False
    undecided = False
    for item in left:
        for index, candidate in enumerate(right):
            verdict = _parts_equal(item, candidate, slow)
            if verdict:
                del right[index]
                break
            undecided |= verdict is None
        else:
            if not undecided:
                return False
    return True if not right else None


def _all_named(part: Part) -> bool:
    """Whether each item gives a value to a name of its own: `x=1, y=2`, but not `x=1, x=2` or `x_1=1, x_2=2`."""
    names = {_base(item.text.split("=")[0]) for item in part.items if item.text.count("=") == 1}
    return len(names) == len(part.items) > 1


def _base(name: str) -> str:
    """A name without its number: `x` for `x_1`, which is one solution of several."""
    return re.sub(r"_\{?\d\}?$", "", squeeze(name))


def _distinct(items: list[Part]) -> list[Part]:
    return list({squeeze(item.text): item for item in items}.values())


# leaves -----------------------------------------------------------------------------------------------


def _leaves_equal(gold: str, answer: str, slow: bool) -> Verdict:
    if squeeze(gold) == squeeze(answer):
        return True
    (gold_sides, gold_signs), (sides, signs) = sides_of(gold), sides_of(answer)
    if not gold_signs and not signs:
        return values_equal(gold_sides[0], sides[0], slow)
    if set(gold_signs) <= {"="} and set(signs) <= {"="}:
        return _equations_equal(gold_sides, sides, slow)
    left, right = inequality(gold), inequality(answer)
    if left and right:
        return left[0] == right[0] and _parts_equal(left[1], right[1], slow)
    if len(gold_sides) == len(sides) == 2 and {gold_signs[0], signs[0]} <= set(FLIP):
        return same_relation(gold_sides, sides, gold_signs[0], signs[0], slow)
    return _ranges_equal(Part("leaf", gold), Part("leaf", answer), slow)


def _equations_equal(gold: list[str], answer: list[str], slow: bool) -> Verdict:
    if len(gold) == 1:
        if is_name(answer[-1]) and not is_name(answer[0]):
            answer = answer[::-1]
        if is_quantity(answer[0]):
            return values_equal(gold[0], answer[-1], slow)
        verdicts = [values_equal(gold[0], side, slow) for side in answer]
        return False if False in verdicts else None if None in verdicts else True
    if len(answer) == 1:
        return is_name(gold[0]) and values_equal(gold[-1], answer[0], slow)
    if is_name(gold[0]) and is_name(answer[0]):
        if (
            squeeze(gold[0]) == squeeze(answer[0])
            or _both_graphs(gold[0], answer[0])
            or _one_unknown(gold[0], answer[0])
        ):
            return values_equal(gold[-1], answer[-1], slow)
        computed = not (is_name(gold[1]) or is_name(answer[1]))
        if len(gold) == len(answer) == 2 and computed and not {*gold[0]} & {*answer[1]}:
            return False
    if len(gold) == len(answer) == 2:
        return same_relation(gold, answer, "=", "=", slow)
    return False


def _one_unknown(left: str, right: str) -> bool:
    """Whether one is `x` and the other `x_1`: the first says no more than that it is a solution."""
    return _base(left) == _base(right) in (squeeze(left), squeeze(right))


def _both_graphs(left: str, right: str) -> bool:
    """Whether one is `y` and the other `f(x)`, which name the same graph."""
    names = {squeeze(left), squeeze(right)}
    return "y" in names and any(re.fullmatch(r"[fghp]\(x\)", name) for name in names)
