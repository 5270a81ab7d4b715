"""Arbitrary constants and integer parameters, whose names do not matter: +C, C_1e^x + C_2e^{-x}, 2πk with k an integer.

A name is taken for an arbitrary constant only where nothing else is likely: `C` or `c_1` beside one variable, `A` and
`B` before exponentials or sines. A letter that a problem may have given a meaning, such as the k of `kx` or the C of
`C/3`, keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations
from typing import Any

from primecli.verifiers.math.evaluate import numeric
from primecli.verifiers.math.tree import Tree, children, operation, substitute, symbols

MAX_CONSTANTS = 4
"""Of a solution whose constants are tried in each order."""

_ARBITRARY = re.compile(r"[CcK](?:_\d)?")  # what is a constant where it stands beside one variable
_SURE = re.compile(r"C(?:_\d)?")
_NEW_NAME = re.compile(r"[CcKkAD](?:_\d)?")  # what an answer may call the only constant
_NEW_NAMES = re.compile(r"[CcKkABDEabMN](?:_\d)?")  # and what it may call several
_VARIABLE = re.compile(r"[abhkmnp-z]|\\(?:theta|phi|alpha|beta|tau|omega|lambda)")
_TRANSCENDENTAL = {"sin", "cos", "exp", "ln", "sinh", "cosh", "logb"}

# integer parameters ---------------------------------------------------------------------------------------

INTEGER = "\\integer"
"""Takes the place of a letter that stands for any integer."""

# "k \in \mathbb{Z}", "k is any integer", "for integers k"; groups: the letter and the set, the letter, the letter
_ANNOTATED = re.compile(
    r"(?<![a-zA-Z\\])([j-nrst])\s*(?:\\in(?![a-zA-Z])|∈)\s*(?:\\(?:mathbb|mathbf|mathrm|text)\s*)?\{?\s*([ZNℤℕ])"
    r"|(?<![a-zA-Z\\])([j-nrst])\}?\$?\s*(?:\\text\{)?\s*(?:is |be )?(?:an |any )?(?:arbitrary )?integers?\b"
    r"|\bintegers?\s*\}?\s*\$?([j-nrst])(?![a-zA-Z])"
)
_LETTER = re.compile(r"(?<![a-zA-Z\\_])(?<!_\{)([kmn])(?![a-zA-Z_])")
_IN = re.compile(r"\\in(?![a-zA-Z])")
_SEVERAL = re.compile(r"\([^()]*[,;]|\[|\\(?:begin|langle|leq|geq|neq)(?![a-zA-Z])|[<>]")
_NAMED = re.compile(r"([a-zA-Z](?:_\{?\w\}?)?)\s*=")
_ALONE = re.compile(r"(?<![a-zA-Z\\_])[a-zA-Z](?![a-zA-Z]{2})|(?<=(?<![a-zA-Z\\])[a-zA-Z])[a-zA-Z](?![a-zA-Z])")
_ANGLE = re.compile(r"\\pi(?![a-zA-Z])|\^\{\\circ\}")


def same_parameter(gold: str, answer: str, raw_gold: str, raw_answer: str) -> tuple[str, str]:
    """The two answers, normalised, with one name for the integer parameter of a general solution.

    raw_gold, raw_answer: as they were written, where `k \\in \\mathbb{Z}` may stand. A letter that is said to be any
    integer becomes INTEGER in both. Without such words the k of `\\frac{\\pi}{6} + 2\\pi k` may have another name,
    but `2k` is not `2n`.

    >>> same_parameter("2\\\\pi k", "2\\\\pi n", "2\\\\pi k", "2\\\\pi n")
    ('2\\\\pi k', '2\\\\pi k')
    """
    if not _LETTER.search(gold) and "\\in" not in raw_gold and "integer" not in raw_gold:
        return gold, answer
    if _IN.search(gold) or _IN.search(answer):
        return gold, answer  # the set that a letter lies in is the answer, or part of it
    gold_name, gold_set = _annotated(raw_gold)
    answer_name, answer_set = _annotated(raw_answer)
    if not gold_name and (answer_set or _ANGLE.search(gold)):
        gold_name = _only_letter(gold) if _ANGLE.search(gold) else ""
    if not gold_name:
        return gold, answer
    if not answer_name:
        answer_name = gold_name if _with_name(gold_name).search(answer) else _only_letter(answer)
    if not answer_name or (answer_name != gold_name and _with_name(gold_name).search(answer)):
        return gold, answer
    if "Z" in (gold_set, answer_set) and "N" not in (gold_set, answer_set) and _single(gold) and _single(answer):
        return _with_name(gold_name).sub(r"\\integer ", gold), _with_name(answer_name).sub(r"\\integer ", answer)
    return gold, _with_name(answer_name).sub(gold_name, answer)


def _single(text: str) -> bool:
    """Whether an answer is one expression, or a list of values of one unknown.

    Only then may the integer differ from one expression to the next: (k, 2k + 2) is not (k, 2k).
    """
    return not _SEVERAL.search(text) and len(set(_NAMED.findall(text))) <= 1


def integer_parameter(text: str) -> str:
    """The letter that an answer, as it was written, says to be any integer; "" where there is none."""
    name, numbers = _annotated(text)
    return name if numbers == "Z" else ""


# "c \in \mathbb{R}", "c is an arbitrary constant", "for any real c"; one of the groups has the letter
_ANY_REAL = re.compile(
    r"(?<![a-zA-Z\\])([a-zA-Z])\s*\\in\s*\\mathbb\s*\{?\s*R"
    r"|(?<![a-zA-Z\\])([a-zA-Z])\}?\$?\s*(?:\\text\{)?\s*is (?:an? |any )?(?:arbitrary |real )*(?:constant|real|number)"
    r"|\b(?:any|all|arbitrary|some)(?: real| constant| number)+s?\s*\}?\s*\$?([a-zA-Z])(?![a-zA-Z])"
)
_IN_REALS = re.compile(r"[,;\s]*\(?([a-zA-Z])\s*\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*\)?$")
_USUAL = {"a", "c", "k", "C", "K"}  # what a constant is called where only the other answer says that it is one


def same_constant(gold: str, answer: str, raw_gold: str, raw_answer: str) -> tuple[str, str]:
    """The two answers with one name for a constant that is said to be any real number.

    >>> same_constant("f(x)=cx", "f(x)=kx", "f(x)=cx", "f(x)=kx for any real k")
    ('f(x)=cx', 'f(x)=cx')
    """
    names = [_any_real(text) for text in (raw_gold, raw_answer)]
    if not any(names):
        return gold, answer
    gold, answer = _without_reals(gold), _without_reals(answer)
    letters, others = (set(_ALONE.findall(text)) for text in (gold, answer))
    new = names[0] or _only(letters - others)
    old = names[1] or _only(others - letters)
    if not new or not old or new == old or new not in letters or old not in others or new in others or old in letters:
        return gold, answer
    return gold, re.sub(rf"(?<![a-zA-Z\\_]){old}(?![a-zA-Z_]{{2}})", new, answer)


def _any_real(text: str) -> str:
    if "R" not in text and "real" not in text and "constant" not in text:
        return ""
    match = _ANY_REAL.search(text)
    return match.group(1) or match.group(2) or match.group(3) if match is not None else ""


def _without_reals(text: str) -> str:
    """`f(x) = cx, c \\in \\mathbb{R}` without its last part, which says nothing of the value."""
    match = _IN_REALS.search(text)
    head = text[: match.start()] if match is not None else ""
    return head if match is not None and "=" in head and match.group(1) in _ALONE.findall(head) else text


def _only(letters: set[str]) -> str:
    return min(letters) if len(letters) == 1 and letters <= _USUAL else ""


def _annotated(text: str) -> tuple[str, str]:
    """The letter that is said to be an integer, and the set that it is in: Z, N or, if none is said to be, ""."""
    if "\\in" not in text and "∈" not in text and "integer" not in text:
        return "", ""
    match = _ANNOTATED.search(text)
    if match is None:
        return "", ""
    letter = match.group(1) or match.group(3) or match.group(4)
    return letter, "N" if match.group(2) in ("N", "ℕ") else "Z"


def _only_letter(text: str) -> str:
    letters = set(_LETTER.findall(text))
    return letters.pop() if len(letters) == 1 else ""


def _with_name(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-zA-Z\\_])(?<!_\{{){name}(?![a-zA-Z_])")


def same_classes(gold: Tree, answer: Tree, bounded: bool) -> bool:
    """Whether a + b·n takes the same values as another such expression when n runs through all integers.

    Raises Unreadable and TooLarge.
    """
    import mpmath

    if symbols(gold) != {INTEGER} or symbols(answer) != {INTEGER}:
        return False
    with mpmath.workdps(60):
        small = mpmath.mpf(10) ** -40
        lines = []
        for tree in (gold, answer):
            start, one, two, five = (numeric(tree, {INTEGER: mpmath.mpf(n)}, bounded) for n in (0, 1, 2, 5))
            step = one - start
            if step == 0 or abs(two - one - step) > small or abs(five - start - 5 * step) > small:
                return False
            lines.append((start, step))
        (start, step), (other_start, other_step) = lines
        shift: Any = (start - other_start) / step
        return bool(abs(abs(step) - abs(other_step)) < small and abs(shift - mpmath.nint(mpmath.re(shift))) < small)


# arbitrary constants --------------------------------------------------------------------------------------


def renamed(gold: Tree, answer: Tree) -> Iterator[Tree]:
    """The answer with the names that the gold answer has for its arbitrary constants, in each order.

    Nothing where the gold answer has none, or the answer has others than it or not as many.
    """
    constants = _constants(gold)
    variables = symbols(gold) - constants
    names = symbols(answer) - variables
    if not constants or len(names) != len(constants) or not variables <= symbols(answer):
        return
    allowed = _names_for(constants)
    if not all(allowed.fullmatch(name) for name in names):
        return
    if names == constants and (len(names) == 1 or "A" in names):
        return  # nothing to try; and A and B may be of the problem, so that they cannot be swapped
    for order in permutations(sorted(constants)):
        pairs = zip(sorted(names), order, strict=True)
        yield substitute(answer, {name: ("sym", constant) for name, constant in pairs})


def without_added_constant(gold: Tree, answer: Tree) -> tuple[Tree, Tree] | None:
    """Both trees without the constant of integration that each adds, as +C and +C_1; None where one adds none.

    What is left may differ by a number: x^2 + C and x^2 + 1 + C are the same functions.
    """
    left, right = _without_term(gold, _SURE), _without_term(answer, _NEW_NAME)
    if left is None or right is None or symbols(left) != symbols(right) or not _plain(symbols(left)):
        return None
    return left, right


def _plain(names: frozenset[str]) -> bool:
    """Whether all names are those of variables, and there are a few of them."""
    return 0 < len(names) <= 3 and all(_VARIABLE.fullmatch(name) for name in names)


def _constants(gold: Tree) -> frozenset[str]:
    """The names in a gold answer that are arbitrary constants; none where they may be anything else."""
    names = symbols(gold)
    found = frozenset(name for name in names if _ARBITRARY.fullmatch(name))
    if {"A", "B"} <= names:
        found = frozenset(name for name in names if name in "ABCD")
        if not _transcendental(gold):
            return frozenset()
    variables = names - found
    if not 0 < len(found) <= MAX_CONSTANTS or not _plain(variables):
        return frozenset()
    sure = min(found) == "C" if len(found) == 1 else all(re.fullmatch(r"C_\d", name) for name in found)
    return found if sure or len(variables) == 1 else frozenset()


def _names_for(constants: frozenset[str]) -> re.Pattern[str]:
    """What an answer may call these constants."""
    if len(constants) > 1:
        return _NEW_NAMES
    if _SURE.fullmatch(min(constants)):
        return _NEW_NAME
    return _ARBITRARY  # a lone c or K may be a letter of the problem: only another clear constant may replace it


def _transcendental(tree: Tree) -> bool:
    """Whether a tree has an exponential, logarithm, sine or cosine of a variable."""
    below = children(tree)
    if tree[0] == "pow" and symbols(tree[2]):
        return True
    return (operation(tree) in _TRANSCENDENTAL and bool(symbols(tree))) or any(map(_transcendental, below))


def _without_term(tree: Tree, name: re.Pattern[str]) -> Tree | None:
    """A sum without its only term that is a constant of this name, which occurs nowhere else."""
    if tree[0] != "add":
        return None
    terms = list(tree[1:])
    constants = [term for term in terms if term[0] == "sym" and name.fullmatch(term[1])]
    rest = [term for term in terms if term not in constants]
    if len(constants) != 1 or any(constants[0][1] in symbols(term) for term in rest):
        return None
    return ("add", *rest) if len(rest) > 1 else rest[0]
