"""Whether an answer equals the gold answer, LaTeX or plain.

Precision comes before recall: a wrong answer that is rewarded teaches the model, a right one that is missed
costs a little signal. So numbers are compared exactly, never within a tolerance: 0.333 is not 1/3 and 3.14 is
not \\pi. Expressions count as equal when they agree to 60 and again to 200 digits at random points.

Each comparison gives True, False, or None for undecided: the cheap part, which may run in the caller's process,
leaves to a worker what needs sympy or numbers of unbounded size.
"""

from __future__ import annotations

import re

from primecli.verifiers.math_algebra import math_equal, proportional
from primecli.verifiers.math_expr import Tree, Unreadable, parse_expression, symbols
from primecli.verifiers.math_leaf import CHOICE_THEN, TEXT, Leaf, read_leaf
from primecli.verifiers.math_normalize import Part, normalize, read_parts, split_top, squeeze
from primecli.verifiers.math_value import Untame

Verdict = bool | None


def equal(gold: str, answer: str, slow: bool = False) -> Verdict:
    """Whether `answer` equals `gold`; None (only without `slow`) where that takes sympy or large numbers.

    >>> equal(r"\\frac{1}{2}", "0.5"), equal("10000", "9999"), equal(r"\\pi", "3.14")
    (True, False, False)

    Raises GoldUnreadable and AnswerUnreadable, with `slow`.
    """
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


def check_readable(gold: str) -> None:
    """Reads a gold answer as `equal` does with `slow`, evaluating it. Raises GoldUnreadable."""
    for part in read_parts(normalize(gold)):
        _check_part(part)


def _check_part(part: Part) -> None:
    for item in part.items:
        _check_part(item)
    if part.kind == "leaf" and part.text:
        for side in _sides(part.text)[0]:
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
    if kinds in (("union", "union"), ("list", "list"), ("list", "set"), ("set", "list"), ("set", "set")):
        return _any_order(gold, answer, slow, repeats="set" in kinds)
    if kinds in (("tuple", "list"), ("list", "tuple")):
        # a bare list against an ordered pair: accepted in order only, and never against an interval
        return "()" in (gold.brackets, answer.brackets) and _in_order(gold, answer, slow)
    if "set" in kinds and "leaf" in kinds:
        single, other = (gold, answer) if gold.kind == "set" else (answer, gold)
        if len(single.items) == 1:
            pair = (single.items[0], other) if gold.kind == "set" else (other, single.items[0])
            return _parts_equal(*pair, slow)
        if not single.items:
            return squeeze(other.text) == "\\emptyset"
        return False
    return _ranges_equal(gold, answer, slow)


def _ranges_equal(gold: Part, answer: Part, slow: bool) -> Verdict:
    """`x > 3` against `(3, \\infty)`, `x<-1 or x>1` against a union."""
    gold_range, answer_range = _as_range(gold), _as_range(answer)
    if gold_range is None or answer_range is None or gold_range.kind != answer_range.kind:
        return False
    return _parts_equal(gold_range, answer_range, slow)


def _as_range(part: Part) -> Part | None:
    if part.kind == "union" or (part.kind == "tuple" and len(part.items) == 2 and part.brackets[0] in "(["):
        return part
    if part.kind == "list":
        ranges = [_inequality(item.text) if item.kind == "leaf" else None for item in part.items]
        found = tuple(each[1] for each in ranges if each is not None)
        return Part("union", part.text, found) if len(found) == len(part.items) else None
    if part.kind == "leaf":
        if squeeze(part.text) in ("\\mathbb{R}", "\\mathbbR", "\\R"):
            return Part("tuple", part.text, (Part("leaf", "-\\infty"), Part("leaf", "\\infty")), "()")
        found_one = _inequality(part.text)
        return found_one[1] if found_one else None
    return None


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
    """Whether each item gives a value to a name of its own: `x=1, y=2`, but not `x=1, x=2`."""
    names = {squeeze(item.text.split("=")[0]) for item in part.items if item.text.count("=") == 1}
    return len(names) == len(part.items) > 1


def _distinct(items: list[Part]) -> list[Part]:
    return list({squeeze(item.text): item for item in items}.values())


# leaves -----------------------------------------------------------------------------------------------

_RELATION = re.compile(r"=|<|>|\\(?:leq|geq|neq|approx|Rightarrow|Leftrightarrow|to|equiv|sim)(?![a-zA-Z])")
_NAME = re.compile(r"(?!\d)[a-zA-Z\\][a-zA-Z\d\\{}_'(),|: ]*")
_FLIP = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}


def _sides(text: str) -> tuple[list[str], list[str]]:
    """Sides of a relation and its signs; what follows an implication stands for it, an approximation is cut."""
    split = split_top(text, _RELATION)
    if split is None:
        return [text], []
    sides, signs = [side.strip() for side in split[0]], split[1]
    for index in range(len(signs) - 1, -1, -1):
        if signs[index] in ("\\Rightarrow", "\\Leftrightarrow"):
            sides, signs = sides[index + 1 :], signs[index + 1 :]
            break
    if "\\approx" in signs:
        cut = signs.index("\\approx")
        keep_next = cut == 0 and _is_name(sides[0])  # x \\approx 3 says no more than 3
        sides, signs = (sides[1:2], []) if keep_next else (sides[: cut + 1], signs[:cut])
    return sides, signs


def _is_name(side: str) -> bool:
    """Whether this names a quantity: `x`, `f(x)`, `\\angle ABC`, `\\text{Area}`."""
    return bool(_NAME.fullmatch(side)) and not re.search(r"\\(?:frac|sqrt|pi|cdot|log|ln|sin|cos|tan)\b", side)


def _leaves_equal(gold: str, answer: str, slow: bool) -> Verdict:
    if squeeze(gold) == squeeze(answer):
        return True
    (gold_sides, gold_signs), (sides, signs) = _sides(gold), _sides(answer)
    if not gold_signs and not signs:
        return _values_equal(gold_sides[0], sides[0], slow)
    if set(gold_signs) <= {"="} and set(signs) <= {"="}:
        return _equations_equal(gold_sides, sides, slow)
    left, right = _inequality(gold), _inequality(answer)
    if left and right and left[0] == right[0]:
        return _parts_equal(left[1], right[1], slow)
    return False


def _equations_equal(gold: list[str], answer: list[str], slow: bool) -> Verdict:
    if len(gold) == 1:
        if _is_name(answer[0]):
            return _values_equal(gold[0], answer[-1], slow)
        verdicts = [_values_equal(gold[0], side, slow) for side in answer]
        return False if False in verdicts else None if None in verdicts else True
    if len(answer) == 1:
        return _is_name(gold[0]) and _values_equal(gold[-1], answer[0], slow)
    if _is_name(gold[0]) and _is_name(answer[0]):
        if squeeze(gold[0]) == squeeze(answer[0]):
            return _values_equal(gold[-1], answer[-1], slow)
        computed = not (_is_name(gold[1]) or _is_name(answer[1]))
        if len(gold) == len(answer) == 2 and computed and not {*gold[0]} & {*answer[1]}:
            return False
    if len(gold) == len(answer) == 2:
        return _same_equation(gold, answer, slow)
    return False


def _same_equation(gold: list[str], answer: list[str], slow: bool) -> Verdict:
    """Whether one equation is a constant multiple of the other."""
    try:
        left: Tree = ("add", parse_expression(gold[0]), ("neg", parse_expression(gold[1])))
        right: Tree = ("add", parse_expression(answer[0]), ("neg", parse_expression(answer[1])))
        if symbols(left) != symbols(right) or not symbols(left):
            return False
        return proportional(left, right, tame=not slow)
    except Unreadable:
        return False
    except Untame:
        return None


def _inequality(text: str) -> tuple[str, Part] | None:
    """`a < x \\leq b` as ("x", the interval), None for anything else."""
    sides, signs = _sides(text)
    if not signs or any(sign not in _FLIP for sign in signs) or len(sides) > 3:
        return None
    if len(sides) == 2:
        if re.fullmatch(r"[a-zA-Z]|\\theta", squeeze(sides[1])):
            sides, signs = sides[::-1], [_FLIP[signs[0]]]
        name, bound, sign = squeeze(sides[0]), Part("leaf", sides[1]), signs[0]
        if not re.fullmatch(r"[a-zA-Z]|\\theta", name):
            return None
        if sign in (">", "\\geq"):
            return name, Part("tuple", text, (bound, Part("leaf", "\\infty")), ("(" if sign == ">" else "[") + ")")
        return name, Part("tuple", text, (Part("leaf", "-\\infty"), bound), "(" + (")" if sign == "<" else "]"))
    if signs[0] in (">", "\\geq"):
        sides, signs = sides[::-1], [_FLIP[sign] for sign in reversed(signs)]
    name = squeeze(sides[1])
    if any(sign not in ("<", "\\leq") for sign in signs) or not re.fullmatch(r"[a-zA-Z]|\\theta", name):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return name, Part("tuple", text, (Part("leaf", sides[0]), Part("leaf", sides[2])), brackets)


def _values_equal(gold_text: str, answer_text: str, slow: bool) -> Verdict:
    if squeeze(gold_text) == squeeze(answer_text):
        return bool(answer_text.strip())
    if not answer_text.strip() or not gold_text.strip():
        return False
    gold, answer = read_leaf(gold_text), read_leaf(answer_text)
    if gold.kind == "choice" and gold.text.upper() <= "J":
        return _chosen(gold, answer, answer_text)
    if gold.kind == "choice" or answer.kind == "choice":
        if "words" in (gold.kind, answer.kind):
            return False
        return math_equal(gold.text, answer.text, slow)
    if "words" in (gold.kind, answer.kind):
        return gold.kind == answer.kind and gold.text == answer.text
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if "based" in (gold.kind, answer.kind):
        if gold.kind == "based" and answer.kind == "math":
            return gold.text == answer.text.upper().lstrip("0")
        return gold.kind == answer.kind and gold.text == answer.text and gold.unit == answer.unit
    verdict = math_equal(gold.text, answer.text, slow)
    if verdict is False and gold.percent != answer.percent:
        # 25 and 25% are one answer to "what percent"; 0.25 is another spelling of 25%, but not of 25
        left = f"({gold.text})/100" if gold.percent else gold.text
        right = f"({answer.text})/100" if answer.percent else answer.text
        return math_equal(left, right, slow)
    return verdict


def _chosen(gold: Leaf, answer: Leaf, answer_text: str) -> bool:
    """A multiple-choice letter, alone or before the text of its choice."""
    if answer.kind == "choice":
        return gold.text.upper() == answer.text.upper()
    bare = TEXT.sub(lambda match: match.group(1), answer_text).strip()
    if re.fullmatch(r"[a-e]", bare):
        return gold.text.upper() == bare.upper()
    then = CHOICE_THEN.fullmatch(bare)
    return bool(then) and gold.text.upper() == (then.group(1) or then.group(2))  # type: ignore[union-attr]
