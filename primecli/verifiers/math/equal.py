"""Whether an answer equals the gold answer, part by part.

Precision comes before recall: a wrong answer that is rewarded teaches the model, while a right one that is missed costs
a little signal. So numbers are compared exactly, never within a tolerance: 0.333 is not 1/3, and 3.14 is not \\pi.
Expressions are equal when they agree to 60 and again to 200 digits at random points.

Each comparison returns True, False, or None for undecided. None occurs only with `bounded`, in the caller's process:
what needs sympy or numbers of unbounded size is left for a worker.
"""

from __future__ import annotations

import re

from primecli.verifiers.math.equal_expressions import expressions_equal
from primecli.verifiers.math.equal_values import Verdict, is_number, values_equal
from primecli.verifiers.math.leaf import read_leaf
from primecli.verifiers.math.normalize import normalize, squeeze
from primecli.verifiers.math.parts import Part, read_parts
from primecli.verifiers.math.relations import FLIP, as_range, inequality, is_name, is_quantity, same_relation, sides_of

MAX_UNORDERED = 30
"""Items of a list whose order does not matter: each is compared with each. Longer lists are not equal."""


_DECIMAL = re.compile(r"-?\d+\.\d+")
# as other languages write decimals: 3,14 or 0,5, but 1,234 may be thousands, and 2,5 a list
_DECIMAL_COMMA = re.compile(r"-?(?:0,\d+|\d+,(?:\d{2}|\d{4,}))")


def equal(gold: str, answer: str, bounded: bool = True) -> Verdict:
    """Whether two answers, in LaTeX or plain text, are equal; None where deciding needs a worker (see above).

    >>> equal(r"\\frac{1}{2}", "0.5"), equal("10000", "9999"), equal(r"\\pi", "3.14")
    (True, False, False)

    Raises GoldUnreadable and AnswerUnreadable, unless `bounded`.
    """
    currency = _currency(gold)
    other = _currency(answer) if currency else ""
    gold, answer = normalize(gold), normalize(answer)
    if other and other != currency:
        return _money_equal(gold, answer, (currency, other), bounded)
    if not answer:
        return False
    if squeeze(gold) == squeeze(answer):
        return True
    if "," in answer and _DECIMAL.fullmatch(gold) and _DECIMAL_COMMA.fullmatch(answer):
        return values_equal(gold, answer.replace(",", "."), bounded)
    undecided = False
    for gold_part in read_parts(gold):
        for answer_part in read_parts(answer):
            verdict = _parts_equal(gold_part, answer_part, bounded)
            if verdict:
                return True
            undecided |= verdict is None
    return None if undecided else False


# `normalize` drops the signs of currencies, so that 5 equals both $5 and 5 cents; but $5 does not equal 5 cents
_CURRENCIES = {
    "dollar": re.compile(r"\\\$|^\s*\$[^$]*$|\bUSD\b|\d\}?\s*(?:\\(?:text|mathrm)\{)?\s*dollars?\b", re.IGNORECASE),
    "cent": re.compile(r"\d\}?\s*(?:\\(?:text|mathrm)\{)?\s*(?:cents?\b|¢)", re.IGNORECASE),
    "euro": re.compile(r"€|\\euro|\bEUR\b|\beuros?\b", re.IGNORECASE),
    "pound": re.compile(r"£|\\pounds|\bGBP\b"),
    "yen": re.compile(r"¥|\byen\b|\bJPY\b", re.IGNORECASE),
    "rupee": re.compile(r"₹|\bINR\b|\brupees?\b", re.IGNORECASE),
}


_MONEY = re.compile(r"[$€£¥₹¢]|(?i:dollar|cent|euro|eur\b|usd|gbp|yen|jpy|inr|rupee)|\\pounds")


def _currency(text: str) -> str:
    """The currency of an amount: dollar for $5, cent for 2 dollars and 50 cents, "" for none."""
    if not _MONEY.search(text):
        return ""
    if _CURRENCIES["cent"].search(text):
        return "cent"
    return next((name for name, pattern in _CURRENCIES.items() if pattern.search(text)), "")


def _money_equal(gold: str, answer: str, currencies: tuple[str, str], bounded: bool) -> Verdict:
    """Compares $2.50 with 250 cents; other currencies have no fixed rate."""
    if {*currencies} != {"dollar", "cent"}:
        return False
    cents, dollars = (gold, answer) if currencies[0] == "cent" else (answer, gold)
    in_cents, in_dollars = read_leaf(cents), read_leaf(dollars)
    if in_cents.unit != "cent" or in_dollars.unit not in ("", "dollar") or in_dollars.kind != "math":
        return False
    return values_equal(f"({in_dollars.text})\\cdot 100", in_cents.text, bounded)


def check_readable(gold: str) -> None:
    """Reads and evaluates a gold answer as `equal` does in a worker. Raises GoldUnreadable."""
    for part in read_parts(normalize(gold)):
        _check_part(part)


def _check_part(part: Part) -> None:
    for item in part.items:
        _check_part(item)
    if part.kind == "leaf" and part.text:
        for side in sides_of(part.text)[0]:
            leaf = read_leaf(side)
            if leaf.kind == "math":
                expressions_equal(leaf.text, leaf.text, bounded=False)


# parts ------------------------------------------------------------------------------------------------


def _parts_equal(gold: Part, answer: Part, bounded: bool) -> Verdict:
    kinds = (gold.kind, answer.kind)
    if kinds == ("leaf", "leaf"):
        return _leaves_equal(gold.text, answer.text, bounded)
    if kinds == ("tuple", "tuple"):
        return gold.brackets == answer.brackets and _in_order(gold, answer, bounded)
    if kinds == ("matrix", "matrix"):
        return gold.brackets == answer.brackets and _in_order(gold, answer, bounded)
    if kinds in (("matrix", "tuple"), ("tuple", "matrix")):
        matrix, other = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        vector = matrix.brackets == "1" or int(matrix.brackets) == len(matrix.items)
        like_a_vector = other.brackets == "()" or (other.brackets == "[]" and other is answer)
        return vector and like_a_vector and _in_order(gold, answer, bounded)
    if kinds in (("union", "union"), ("list", "list"), ("list", "set"), ("set", "list"), ("set", "set")):
        return _any_order(gold, answer, bounded, repeats="set" in kinds)
    if kinds == ("leaf", "list") and answer.brackets == "or":
        return _all_equal(gold, answer, bounded)
    if kinds in (("tuple", "list"), ("list", "tuple")):
        if _ranges_equal(gold, answer, bounded):
            return True
        # a bare list and an ordered pair are equal in the same order only; a bare list is never an interval
        return "()" in (gold.brackets, answer.brackets) and _in_order(gold, answer, bounded)
    if "set" in kinds and "leaf" in kinds:
        single, other = (gold, answer) if gold.kind == "set" else (answer, gold)
        if len(single.items) == 1:
            pair = (single.items[0], other) if gold.kind == "set" else (other, single.items[0])
            return _parts_equal(*pair, bounded)
        if not single.items:
            return values_equal("\\emptyset", other.text, bounded)
        return False
    return _ranges_equal(gold, answer, bounded)


def _ranges_equal(gold: Part, answer: Part, bounded: bool) -> Verdict:
    """Compares `x > 3` with `(3, \\infty)`, `x<-1 or x>1` with a union, `x \\neq 0` with two open half lines."""
    left, right = as_range(gold), as_range(answer)
    if left is None or right is None:
        return False
    if "except" in (left.kind, right.kind):
        left, right = _excluded_points(left), _excluded_points(right)
        return left is not None and right is not None and _any_order(left, right, bounded, repeats=True)
    if left.kind != right.kind or (left is gold and right is answer):
        return False
    return _parts_equal(left, right, bounded)


def _excluded_points(part: Part) -> Part | None:
    """The set of points that are missing from the real line; None where more than points are missing.

    A union must consist of open intervals, each of which starts where another ends.
    """
    if part.kind == "except":
        return Part("set", part.text, part.items)
    if part.kind != "union" or any(item.kind != "tuple" or item.brackets != "()" for item in part.items):
        return None
    ends = {squeeze(item.items[0].text): item.items[1] for item in part.items if len(item.items) == 2}  # by start
    points: list[Part] = []
    end = ends.pop("-\\infty", None)
    while end is not None and squeeze(end.text) not in ("\\infty", "+\\infty"):
        points.append(end)
        end = ends.pop(squeeze(end.text), None)
    return Part("set", part.text, tuple(points)) if end is not None and not ends and points else None


def _all_equal(gold: Part, answer: Part, bounded: bool) -> Verdict:
    """For an answer such as `\\frac12 or 0.5`: the gold value in several spellings."""
    verdicts = [_parts_equal(gold, item, bounded) for item in answer.items]
    if False in verdicts:
        return _ranges_equal(gold, answer, bounded)
    return None if None in verdicts else True


def _in_order(gold: Part, answer: Part, bounded: bool) -> Verdict:
    if len(gold.items) != len(answer.items):
        return False
    undecided = False
    for left, right in zip(gold.items, answer.items, strict=True):
        verdict = _parts_equal(left, right, bounded)
        if verdict is False:
            return False
        undecided |= verdict is None
    return None if undecided else True


def _any_order(gold: Part, answer: Part, bounded: bool, repeats: bool) -> Verdict:
    """Whether each item has an equal of its own in the other part.

    repeats: whether an item may be repeated, as in a set, and then counts once.
    """
    if _all_named(gold) and not any("=" in item.text for item in answer.items):
        return _in_order(gold, answer, bounded)  # only their order says which of two bare values is y
    left, right = list(gold.items), list(answer.items)
    if max(len(left), len(right)) > MAX_UNORDERED:
        return False
    if repeats:
        left, right = _distinct(left), _distinct(right)
    if len(left) != len(right):
        return False
    undecided = False
    for item in left:
        for index, candidate in enumerate(right):
            verdict = _parts_equal(item, candidate, bounded)
            if verdict:
                del right[index]
                break
            undecided |= verdict is None
        else:
            if not undecided:
                return False
    return True if not right else None


def _all_named(part: Part) -> bool:
    """Whether each item gives a value to a different name: `x=1, y=2`, but not `x=1, x=2` or `x_1=1, x_2=2`."""
    names = {_without_index(item.text.split("=")[0]) for item in part.items if item.text.count("=") == 1}
    return len(names) == len(part.items) > 1


def _without_index(name: str) -> str:
    """A name without its index: `x` for `x_1`, which is one of several solutions."""
    return re.sub(r"_\{?\d\}?$", "", squeeze(name))


def _distinct(items: list[Part]) -> list[Part]:
    """The items without those that only repeat another's text."""
    return list({squeeze(item.text): item for item in items}.values())


# leaves -----------------------------------------------------------------------------------------------


def _leaves_equal(gold: str, answer: str, bounded: bool) -> Verdict:
    if squeeze(gold) == squeeze(answer):
        return True
    (gold_sides, gold_signs), (sides, signs) = sides_of(gold), sides_of(answer)
    if not gold_signs and not signs:
        return values_equal(gold_sides[0], sides[0], bounded)
    if set(gold_signs) <= {"="} and set(signs) <= {"="}:
        return _equations_equal(gold_sides, sides, bounded)
    left, right = inequality(gold), inequality(answer)
    if left and right:
        return left[0] == right[0] and _parts_equal(left[1], right[1], bounded)
    if len(gold_sides) == len(sides) == 2 and {gold_signs[0], signs[0]} <= set(FLIP):
        return same_relation(gold_sides, sides, gold_signs[0], signs[0], bounded)
    return _ranges_equal(Part("leaf", gold), Part("leaf", answer), bounded)


def _equations_equal(gold: list[str], answer: list[str], bounded: bool) -> Verdict:
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


_LENGTH = re.compile(r"\|\s*(?:[A-Z]\s*[A-Z]|\\(?:overrightarrow|vec)\{[A-Za-z]+\}|z)\s*\|")


def _one_unknown(left: str, right: str) -> bool:
    """Whether one is `x` and the other `x_1`: without an index it can be any of the solutions."""
    return _without_index(left) == _without_index(right) in (squeeze(left), squeeze(right))


def _both_graphs(left: str, right: str) -> bool:
    """Whether one is `y` and the other `f(x)`: both name the graph of a function."""
    names = {squeeze(left), squeeze(right)}
    return "y" in names and any(re.fullmatch(r"[fghp]\(x\)", name) for name in names)
