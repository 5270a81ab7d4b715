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
ANY_CONSTANT = re.compile(r"[CcKkAD](?:_\d)?")
"""What an answer may call the only constant of a solution."""
_NEW_NAMES = re.compile(r"[CcKkABDEabMN](?:_\d)?")  # and what it may call several
_VARIABLE = re.compile(r"[a-z]|\\(?:theta|phi|alpha|beta|tau|omega|lambda)")
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
    if "Z" in (gold_set, answer_set) and "N" not in (gold_set, answer_set):
        return _with_name(gold_name).sub(r"\\integer ", gold), _with_name(answer_name).sub(r"\\integer ", answer)
    return gold, _with_name(answer_name).sub(gold_name, answer)


def integer_parameter(text: str) -> str:
    """The letter that an answer, as it was written, says to be any integer; "" where there is none."""
    name, numbers = _annotated(text)
    return name if numbers == "Z" else ""


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
    if (names == constants and len(names) == 1) or not all(allowed.fullmatch(name) for name in names):
        return  # the only constant keeps its name: there is nothing to try
    for order in permutations(sorted(constants)):
        pairs = zip(sorted(names), order, strict=True)
        yield substitute(answer, {name: ("sym", constant) for name, constant in pairs})


def without_added_constant(gold: Tree, answer: Tree) -> tuple[Tree, Tree] | None:
    """Both trees without the constant of integration that each adds, as +C and +C_1; None where one adds none.

    What is left may differ by a number: x^2 + C and x^2 + 1 + C are the same functions.
    """
    left, right = _without_term(gold, _SURE), _without_term(answer, ANY_CONSTANT)
    if left is None or right is None or symbols(left) != symbols(right) or not _plain(symbols(left)):
        return None
    return left, right


def lone_constant(sides: list[Tree], name: re.Pattern[str] = _SURE) -> Tree | None:
    """The other side of an equation one side of which is an arbitrary constant, as in x^2 + y^2 = C; else None."""
    for side, other in (sides, sides[::-1]):
        if side[0] == "sym" and name.fullmatch(side[1]) and _plain(symbols(other)):
            return other
    return None


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
    if len(variables) > 1 and not (len(found) == 1 and _SURE.fullmatch(min(found))):
        return frozenset()
    return found


def _names_for(constants: frozenset[str]) -> re.Pattern[str]:
    """What an answer may call these constants."""
    if len(constants) > 1:
        return _NEW_NAMES
    if _SURE.fullmatch(min(constants)):
        return ANY_CONSTANT
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
