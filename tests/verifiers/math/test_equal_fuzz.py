"""The answers of MATH-500, changed in value (none may be accepted) or only in spelling (nearly all must be)."""

import random
import re
from collections.abc import Callable

import pytest

from primecli.verifiers import Task, load_verifier
from tests.verifiers.math.grading import data_rows

Change = Callable[[str, random.Random], str | None]


@pytest.fixture(scope="module")
def golds() -> list[str]:
    return sorted({row["answer"] for row in data_rows("math500.jsonl")})


def is_expression(gold: str) -> bool:
    return not re.search(r"\\text|\\in|\\cup|\\begin|mbox|circ|[,=_%$]", gold)


def digit_changed(gold: str, rng: random.Random) -> str | None:
    digits = list(re.finditer(r"\d", gold))
    if not digits:
        return None
    at = rng.choice(digits)
    other = rng.choice([digit for digit in "123456789" if digit != at.group()])
    return gold[: at.start()] + other + gold[at.end() :]


def digit_dropped(gold: str, rng: random.Random) -> str | None:
    digits = [m for m in re.finditer(r"\d", gold) if gold[m.start() - 1 : m.start()] not in (".", "{", "\\")]
    if len(digits) < 2 or re.search(r"0\.", gold):
        return None
    at = rng.choice(digits[1:])
    return gold[: at.start()] + gold[at.end() :]


def sign_flipped(gold: str, rng: random.Random) -> str | None:
    signs = list(re.finditer(r"(?<!^)[+-]", gold))
    if not signs:
        return gold[1:] if gold.startswith("-") else None if gold == "0" else "-" + gold
    at = rng.choice(signs)
    return gold[: at.start()] + ("-" if at.group() == "+" else "+") + gold[at.end() :]


def fraction_swapped(gold: str, rng: random.Random) -> str | None:
    swapped = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\\frac{\2}{\1}", gold, count=1)
    return swapped if swapped != gold else None


def term_dropped(gold: str, rng: random.Random) -> str | None:
    terms = list(re.finditer(r"[+-]\s*[\w\\{}^]+", gold))
    if not terms:
        return None
    at = rng.choice(terms)
    return gold[: at.start()] + gold[at.end() :]


def power_raised(gold: str, rng: random.Random) -> str | None:
    power = re.search(r"\^\{?(\d+)\}?", gold)
    return power and gold[: power.start()] + f"^{{{int(power[1]) + 1}}}" + gold[power.end() :]


def root_removed(gold: str, rng: random.Random) -> str | None:
    return gold.replace("\\sqrt", "", 1) if "\\sqrt" in gold else None


def constant_removed(gold: str, rng: random.Random) -> str | None:
    return gold.replace("\\pi", "", 1) if "\\pi" in gold else None


def doubled(gold: str, rng: random.Random) -> str | None:
    return f"2({gold})" if is_expression(gold) and gold != "0" else None


def one_more(gold: str, rng: random.Random) -> str | None:
    return f"{gold} + 1" if is_expression(gold) else None


def bracket_closed(gold: str, rng: random.Random) -> str | None:
    return gold.replace("(", "[", 1) if "(" in gold and "," in gold else None


CHANGES: list[Change] = [
    digit_changed, digit_dropped, sign_flipped, fraction_swapped, term_dropped, power_raised, root_removed,
    constant_removed, doubled, one_more, bracket_closed,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_answer_changed_in_value_is_accepted(golds: list[str], change: Change) -> None:
    rng = random.Random(11)
    verifier = load_verifier("math")
    tried, accepted = 0, set()
    for gold in golds * (3 if change in (digit_changed, sign_flipped) else 1):
        answer = change(gold, rng)
        if answer is None or answer == gold:
            continue
        tried += 1
        if verifier.grade(Task(f"\\boxed{{{answer}}}", gold)).reward:
            accepted.add((gold, answer))
    assert tried > 0
    assert accepted == set()


def whole_number(change: Callable[[int], str]) -> Callable[[str], str | None]:
    return lambda gold: change(int(gold)) if re.fullmatch(r"-?\d+", gold) else None


def expression(change: Callable[[str], str]) -> Callable[[str], str | None]:
    return lambda gold: change(gold) if is_expression(gold) else None


REWRITES: dict[str, Callable[[str], str | None]] = {
    "dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    "tfrac": lambda gold: gold.replace("\\frac", "\\tfrac"),
    "no left, right": lambda gold: gold.replace("\\left", "").replace("\\right", ""),
    "dollars": lambda gold: f"${gold}$",
    "inline": lambda gold: f"\\({gold}\\)",
    "display": lambda gold: f"\\[{gold}\\]",
    "full stop": lambda gold: f"{gold}.",
    "bold": lambda gold: f"\\mathbf{{{gold}}}" if "_" not in gold else None,
    "braces": lambda gold: f"{{{gold}}}",
    "displaystyle": lambda gold: f"\\displaystyle {gold}",
    "thin spaces": lambda gold: gold.replace(",", ",\\,") if not re.search(r"\d,\d{3}|,\\!", gold) else None,
    "full width": lambda gold: gold.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789"}),
    "minus sign": lambda gold: gold.replace("-", "−"),
    "slash": lambda gold: re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", gold),
    "star": lambda gold: re.sub(r"(\d)\s*\\(sqrt|pi)", r"\1*\\\2", gold),
    "cdot": lambda gold: re.sub(r"(\d)\s*\\(sqrt|pi)", r"\1 \\cdot \\\2", gold),
    "times": lambda gold: re.sub(r"(\d)\s*\\(sqrt|pi)", r"\1 \\times \\\2", gold),
    "bare root": lambda gold: re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", gold),
    "plain root": expression(lambda gold: re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", gold)),
    "root sign": lambda gold: re.sub(r"\\sqrt\{(\d+)\}", r"√\1", gold),
    "braced power": lambda gold: re.sub(r"\^(\d)", r"^{\1}", gold),
    "python power": expression(lambda gold: re.sub(r"\^\{?(\d)\}?", r"**\1", gold)),
    "plus zero": expression(lambda gold: f"{gold}+0"),
    "times one": expression(lambda gold: f"1\\cdot({gold})"),
    "double over two": expression(lambda gold: f"\\frac{{2({gold})}}{{2}}"),
    "minus minus": expression(lambda gold: f"-(-({gold}))"),
    "named": expression(lambda gold: f"x = {gold}"),
    "function": expression(lambda gold: f"f(x) = {gold}"),
    "area": expression(lambda gold: f"\\text{{Area}} = {gold}"),
    "about": expression(lambda gold: f"{gold} \\approx 3.3"),
    "decimal": whole_number(lambda value: f"{value}.0"),
    "thousands": whole_number(lambda value: f"{value:,}"),
    "units": whole_number(lambda value: f"{value}\\text{{ units}}"),
    "area units": whole_number(lambda value: f"{value}\\,\\text{{cm}}^2"),
    "money": whole_number(lambda value: f"\\${value}" if value >= 0 else str(value)),
    "sum": whole_number(lambda value: f"{value - 3} + 3 = {value}"),
    "fraction": whole_number(lambda value: f"\\frac{{{value * 3}}}{{3}}"),
    "text": whole_number(lambda value: f"\\text{{{value}}}"),
    "square root": whole_number(lambda value: f"\\sqrt{{{value**2}}}" if value >= 0 else str(value)),
    "matrix": lambda gold: gold.replace("pmatrix", "bmatrix"),
    "degree sign": lambda gold: gold.replace("^\\circ", "°"),
    "bold words": lambda gold: gold.replace("\\text", "\\textbf"),
}


@pytest.mark.parametrize("ending", ["\\boxed{%s}", "The final answer is $%s$. I hope it is correct."])
def test_answers_changed_only_in_spelling_are_accepted(golds: list[str], ending: str) -> None:
    verifier = load_verifier("math")
    tried, missed = 0, []
    for name, rewrite in REWRITES.items():
        if ending.endswith(".") and name in ("dollars", "inline", "display"):
            continue
        for gold in golds:
            answer = rewrite(gold)
            if answer is None or answer == gold:
                continue
            tried += 1
            if verifier.grade(Task(ending % answer, gold)).reward != 1.0:
                missed.append((name, gold, answer))
    assert tried > 4000
    assert len(missed) <= 0.002 * tried, missed
