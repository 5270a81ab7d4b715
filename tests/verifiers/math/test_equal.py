from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.verifiers.math.equal import equal
from primecli.verifiers.math.normalize import normalize
from tests.verifiers.math.grading import data_rows

# Checked by hand: of all pairs of different answers in MATH-500, only these may count as equal. They differ in their
# spelling, or are a list and a point in the same order, or one has a unit, currency or base that the other leaves out.
ACCEPTED_PAIRS = {
    ("(-2,1)", "-2,1"), ("-2,1", "(-2,1)"), ("-2,1", "1,-2"), ("1,-2", "-2,1"), ("10,\\!080", "10080"),
    ("10080", "10,\\!080"), ("120", "120^\\circ"), ("120^\\circ", "120"), ("15", "15\\mbox{ cm}^2"),
    ("15\\mbox{ cm}^2", "15"), ("2 \\sqrt{5}", "2\\sqrt{5}"), ("2\\sqrt{5}", "2 \\sqrt{5}"), ("30", "30^\\circ"),
    ("30^\\circ", "30"), ("36", "36^\\circ"), ("36", "\\$36"), ("36^\\circ", "36"), ("\\$36", "36"),
    ("40_9", "40"), ("5", "x=5"), ("x=5", "5"), ("90", "90^\\circ"), ("90^\\circ", "90"),
    ("\\frac14", "\\frac{1}{4}"), ("\\frac{1}{4}", "\\frac14"),
}  # fmt: skip


def test_different_answers_of_math500_are_not_equal() -> None:
    answers = sorted({row["answer"] for row in data_rows("math500.jsonl")})
    accepted = {
        (gold, answer)
        for index, gold in enumerate(answers)
        for answer in answers[index % 3 :: 3]  # a third of all pairs, to stay quick
        if gold != answer and equal(gold, answer) is not False
    }
    assert accepted <= ACCEPTED_PAIRS
    assert accepted


@given(
    gold=st.text(alphabet="0123456789xy+-*/^_(){}[],.\\frac sqrt|!%=<>∪π", max_size=30),
    answer=st.text(max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_any_text_can_be_compared_and_equals_itself(gold: str, answer: str) -> None:
    for left, right in ((gold, answer), (answer, gold), (gold, gold[::-1])):
        assert equal(left, right) in (True, False, None)
    assert equal(gold, gold) is bool(normalize(gold))


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
@settings(max_examples=150, deadline=None)
def test_integers_are_equal_exactly_when_they_are(a: int, b: int) -> None:
    assert equal(str(a), f"{a:,}") is True
    assert equal(str(a), str(b)) is (a == b)
    assert equal(str(a), str(a + 1)) is False


@given(st.fractions(max_denominator=999), st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_fractions_are_equal_to_their_multiples_only(value: Any, factor: int) -> None:
    text = f"\\frac{{{value.numerator * factor}}}{{{value.denominator * factor}}}"
    assert equal(f"{value.numerator}/{value.denominator}", text) is True
    assert equal(f"{value.numerator}/{value.denominator}", f"{text} + 10^{{-40}}") is False
