"""Whether an answer equals the gold answer, part by part.

Precision comes before recall: a wrong answer that is rewarded teaches the model, while a right one that is missed costs
a little signal. So numbers are compared exactly, never within a tolerance: 0.333 is not 1/3, and 3.14 is not \\pi.
Expressions are equal when they agree to 60 and again to 200 digits at random points.

Each comparison returns True, False, or None for undecided. None occurs only with `bounded`, in the caller's process:
what needs sympy or numbers of unbounded size is left for a worker.
"""

from __future__ import annotations

import re
from dataclasses import replace

from primecli.verifiers.math.congruences import congruences_equal, is_congruence
from primecli.verifiers.math.constants import integer_parameter, same_constant, same_parameter
from primecli.verifiers.math.equal_equations import equations_equal, without_index
from primecli.verifiers.math.equal_expressions import expressions_equal
from primecli.verifiers.math.equal_forms import sums_equal, vectors_equal
from primecli.verifiers.math.equal_values import Verdict, values_equal
from primecli.verifiers.math.leaf import bare_text, read_leaf
from primecli.verifiers.math.normalize import normalize, squeeze
from primecli.verifiers.math.parts import Part, read_parts, with_variable_of
from primecli.verifiers.math.relations import (
    FLIP,
    as_range,
    inequality,
    range_names,
    same_numbers,
    same_relation,
    sides_of,
)
from primecli.verifiers.math.sequences import (
    DOTS,
    has_dots,
    in_order_of_names,
    progression,
    written_out,
)

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
    raw_gold, raw_answer = gold, answer
    gold, answer = normalize(gold), normalize(answer)
    if other and other != currency:
        return _money_equal(gold, answer, (currency, other), bounded)
    if not answer:
        return False
    if squeeze(gold) == squeeze(answer):
        return True
    if "," in answer and _DECIMAL.fullmatch(gold) and _DECIMAL_COMMA.fullmatch(answer):
        return values_equal(gold, answer.replace(",", "."), bounded)
    if gold.startswith("\\{") and answer.startswith("\\{"):
        answer = with_variable_of(gold, answer)
    if is_congruence(gold):
        return congruences_equal(gold, answer)
    if is_congruence(answer):
        return bool(integer_parameter(raw_gold)) and congruences_equal(answer, gold)  # the gold may be 7k + 3
    gold, answer = same_constant(gold, answer, raw_gold, raw_answer)
    gold, answer = same_parameter(gold, answer, raw_gold, raw_answer)
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
    if read_leaf(gold).unit and read_leaf(answer).unit:
        return values_equal(gold, answer, bounded)  # 6 dollars per hour and 10 cents per minute
    cents, dollars = (gold, answer) if currencies[0] == "cent" else (answer, gold)
    in_cents, in_dollars = read_leaf(cents), read_leaf(dollars)
    if in_cents.unit != "cent" or in_dollars.unit not in ("", "dollar") or in_dollars.kind != "math":
        return False
    return values_equal(f"({in_dollars.text})\\cdot 100", in_cents.text, bounded)


def check_readable(gold: str) -> None:
    """Reads and evaluates a gold answer as `equal` does in a worker. Raises GoldUnreadable."""
    gold = normalize(gold)
    for part in [] if is_congruence(gold) else read_parts(gold):
        _check_part(part)


def _check_part(part: Part) -> None:
    for item in part.items[:1] if part.kind == "cases" else part.items:
        _check_part(item)
    if part.kind == "leaf" and part.text and DOTS not in part.text:
        for side in sides_of(part.text)[0]:
            leaf = read_leaf(side)
            if leaf.kind == "math":
                expressions_equal(leaf.text, leaf.text, bounded=False)


# parts ------------------------------------------------------------------------------------------------


def _parts_equal(gold: Part, answer: Part, bounded: bool) -> Verdict:
    kinds = (gold.kind, answer.kind)
    if kinds == ("leaf", "leaf"):
        return _leaves_equal(gold.text, answer.text, bounded)
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if "cases" in kinds:
        return kinds == ("cases", "cases") and _cases_equal(gold, answer, bounded)
    if "leaf" in kinds and ("tuple" in kinds or "matrix" in kinds):
        vector, other = (gold, answer) if answer.kind == "leaf" else (answer, gold)
        if (same_vector := vectors_equal(vector, other, bounded)) is not False:
            return same_vector
    if kinds == ("tuple", "tuple"):
        return gold.brackets == answer.brackets and _in_order(gold, answer, bounded)
    if kinds == ("matrix", "matrix"):
        return gold.brackets == answer.brackets and _in_order(gold, answer, bounded)
    if kinds in (("matrix", "tuple"), ("tuple", "matrix")):
        matrix, row = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        is_vector = matrix.brackets == "1" or int(matrix.brackets) == len(matrix.items)
        like_a_vector = row.brackets == "()" or (row.brackets == "[]" and row is answer)
        return is_vector and like_a_vector and _in_order(gold, answer, bounded)
    if kinds in (("union", "union"), ("list", "list"), ("list", "set"), ("set", "list"), ("set", "set")):
        if {gold.brackets, answer.brackets} == {"and", "or"} and range_names(gold):
            return _ranges_equal(gold, answer, bounded)  # x < 1 or x > 4 is not x < 1 and x > 4
        same_items = _any_order(gold, answer, bounded, repeats="set" in kinds)
        return _ranges_equal(gold, answer, bounded) if same_items is False and "set" not in kinds else same_items
    if kinds == ("leaf", "list") and answer.brackets == "or":
        return _all_equal(gold, answer, bounded)
    if kinds in (("tuple", "list"), ("list", "tuple")):
        if _ranges_equal(gold, answer, bounded):
            return True
        # a bare list and an ordered pair are equal in the same order only; a bare list is never an interval, and
        # alternatives, such as \pm 1, are no pair
        return (
            "or" not in (gold.brackets, answer.brackets)
            and "()" in (gold.brackets, answer.brackets)
            and _points_equal(gold, answer, bounded)
        )
    if "set" in kinds and "leaf" in kinds:
        single, other = (gold, answer) if gold.kind == "set" else (answer, gold)
        if len(single.items) == 1:
            pair = (single.items[0], other) if gold.kind == "set" else (other, single.items[0])
            return _parts_equal(*pair, bounded)
        if not single.items:
            return values_equal("\\emptyset", other.text, bounded)
        return False
    return _ranges_equal(gold, answer, bounded)


def _points_equal(gold: Part, answer: Part, bounded: bool) -> Verdict:
    """Compares a point with a list of its coordinates, which may have names; x = 3, x = 4 are not the point (3, 4)."""
    points = [replace(part, items=in_order_of_names(part.items)) for part in (gold, answer)]
    for part in points:
        names = [squeeze(item.text.split("=")[0]) for item in part.items if item.text.count("=") == 1]
        if len(set(names)) < len(names) or (names and (gold.name or answer.name)):  # x \in (1,2) is no point
            return False
    return _in_order(points[0], points[1], bounded)


def _cases_equal(gold: Part, answer: Part, bounded: bool) -> Verdict:
    """Compares two piecewise functions row by row, in any order."""
    left, right = list(gold.items), list(answer.items)
    if len(left) != len(right):
        return False
    undecided = False
    for row in left:
        for index, candidate in enumerate(right):
            if not _conditions_equal(row.items[1].text, candidate.items[1].text, bounded):
                continue
            verdict = _parts_equal(row.items[0], candidate.items[0], bounded)
            if verdict is False:
                continue
            undecided |= verdict is None
            del right[index]
            break
        else:
            return False
    return None if undecided else True


_CONDITION = re.compile(r"^(?:if|for|when|where|\\forall|is)\b\s*|,")
_OTHERWISE = {"otherwise", "else", "elsewhere", "in all other cases", "in other cases"}


def _conditions_equal(gold: str, answer: str, bounded: bool) -> bool:
    """Whether the conditions of two rows are the same: the same words, or the same values of the same variable."""
    left, right = (_CONDITION.sub("", bare_text(text).strip()).strip(" .,") for text in (gold, answer))
    if squeeze(left) == squeeze(right) or {left, right} <= _OTHERWISE:
        return True
    parts = [read_parts(text)[0] for text in (left, right)]
    names = [range_names(part) for part in parts]
    if names[0] and names[0] == names[1]:
        return bool(_ranges_equal(parts[0], parts[1], bounded))
    values = [part.text.split("=") if part.kind == "leaf" else [] for part in parts]
    same_name = len(values[0]) == len(values[1]) == 2 and squeeze(values[0][0]) == squeeze(values[1][0])
    return same_name and bool(values_equal(values[0][1], values[1][1], True))


def _ranges_equal(gold: Part, answer: Part, bounded: bool) -> Verdict:
    """Compares `x > 3` with `(3, \\infty)`, `x<-1 or x>1` with a union, `x \\neq 0` with two open half lines."""
    names, other_names = range_names(gold), range_names(answer)
    if len(names) > 1 or len(other_names) > 1 or (names and other_names and names != other_names):
        return False
    left = as_range(gold)
    if left is None and gold.kind != "list":
        return False
    right = as_range(answer)
    if left is not None and right is not None and not (left is gold and right is answer and left.kind == right.kind):
        if "except" in (left.kind, right.kind):
            excluded, others = _excluded_points(left), _excluded_points(right)
            if excluded is not None and others is not None:
                return _any_order(excluded, others, bounded, repeats=True)
        elif left.kind == right.kind and (verdict := _parts_equal(left, right, bounded)) is not False:
            return verdict
    return (right is not None or answer.kind == "list") and same_numbers(gold, answer)


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
    if has_dots(gold.items) or has_dots(answer.items):
        one, other = progression(gold.items), progression(answer.items)
        if one is not None and other is not None:
            same_start = (one.first, one.step) == (other.first, other.step)
            return same_start and _parts_equal(one.last, other.last, bounded)
        gold, answer = (replace(part, items=written_out(part.items)) for part in (gold, answer))
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
        # only their order says which of two bare values is y
        return _in_order(replace(gold, items=in_order_of_names(gold.items)), answer, bounded)
    if has_dots(gold.items) or has_dots(answer.items):
        return _in_order(gold, answer, bounded)
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
    names = {without_index(item.text.split("=")[0]) for item in part.items if item.text.count("=") == 1}
    return len(names) == len(part.items) > 1


def _distinct(items: list[Part]) -> list[Part]:
    """The items without those that only repeat another's text."""
    return list({squeeze(item.text): item for item in items}.values())


# leaves -----------------------------------------------------------------------------------------------


def _leaves_equal(gold: str, answer: str, bounded: bool) -> Verdict:
    if squeeze(gold) == squeeze(answer):
        return True
    if DOTS in gold and "\\text" not in gold:
        return sums_equal(gold, answer)
    (gold_sides, gold_signs), (sides, signs) = sides_of(gold), sides_of(answer)
    if not gold_signs and not signs:
        return values_equal(gold_sides[0], sides[0], bounded)
    if set(gold_signs) <= {"="} and set(signs) <= {"="}:
        return equations_equal(gold_sides, sides, bounded)
    left, right = inequality(gold), inequality(answer)
    if left and right:
        return left[0] == right[0] and _parts_equal(left[1], right[1], bounded)
    if len(gold_sides) == len(sides) == 2 and {gold_signs[0], signs[0]} <= set(FLIP):
        return same_relation(gold_sides, sides, gold_signs[0], signs[0], bounded)
    return _ranges_equal(Part("leaf", gold), Part("leaf", answer), bounded)
