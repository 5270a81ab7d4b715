import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.errors import UsageError
from primecli.verifiers import Grade, Pending, Task, load_verifier
from primecli.verifiers.math.equal import equal
from primecli.verifiers.math.verifier import MathVerifier

DATA = Path(os.environ.get("PRIMECLI_DATA", Path(__file__).resolve().parents[3].parent / "shared" / "data"))


def rows(name: str) -> Iterator[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; PRIMECLI_DATA names another directory")
    with path.open() as lines:
        yield from map(json.loads, lines)


def test_every_worked_solution_of_gsm8k_is_correct() -> None:
    verifier = MathVerifier()
    solutions = [row["answer"] for row in rows("gsm8k_test.jsonl")]
    grades = [verifier.grade(Task(text, text.split("#### ")[1])) for text in solutions]
    assert sum(grade.reward == 1.0 for grade in grades) == len(solutions) == 1319


def test_every_worked_solution_of_math500_is_correct() -> None:
    verifier = MathVerifier()
    problems = list(rows("math500.jsonl"))
    missed = [row for row in problems if verifier.grade(Task(row["solution"], row["answer"])).reward != 1.0]
    assert (missed, len(problems)) == ([], 500)


def test_worked_solutions_serve_as_ground_truth() -> None:
    verifier = MathVerifier()
    for row in list(rows("math500.jsonl"))[::5]:
        assert verifier.grade(Task(f"\\boxed{{{row['answer']}}}", row["solution"])).reward == 1.0, row


def test_the_solution_of_another_gsm8k_problem_is_wrong() -> None:
    verifier = MathVerifier()
    solutions = [row["answer"] for row in rows("gsm8k_test.jsonl")]
    golds = [text.split("#### ")[1] for text in solutions]
    pairs = [
        (text, gold)
        for text, gold, own in zip(solutions, golds[1:] + golds[:1], golds, strict=True)
        if float(own.replace(",", "")) != float(gold.replace(",", ""))
    ]
    assert len(pairs) > 1200
    assert {verifier.grade(Task(text, gold)).verdict for text, gold in pairs} == {"wrong"}


# By hand: of all pairs of different answers in MATH-500, these are the only ones that may pass for each other,
# up to spelling: a list for a point in the same order, and a unit, currency or base that the other leaves out.
ACCEPTED_PAIRS = {
    ("(-2,1)", "-2,1"), ("-2,1", "(-2,1)"), ("-2,1", "1,-2"), ("1,-2", "-2,1"), ("10,\\!080", "10080"),
    ("10080", "10,\\!080"), ("120", "120^\\circ"), ("120^\\circ", "120"), ("15", "15\\mbox{ cm}^2"),
    ("15\\mbox{ cm}^2", "15"), ("2 \\sqrt{5}", "2\\sqrt{5}"), ("2\\sqrt{5}", "2 \\sqrt{5}"), ("30", "30^\\circ"),
    ("30^\\circ", "30"), ("36", "36^\\circ"), ("36", "\\$36"), ("36^\\circ", "36"), ("\\$36", "36"),
    ("40_9", "40"), ("5", "x=5"), ("x=5", "5"), ("90", "90^\\circ"), ("90^\\circ", "90"),
    ("\\frac14", "\\frac{1}{4}"), ("\\frac{1}{4}", "\\frac14"),
}  # fmt: skip


def test_different_answers_of_math500_are_not_equal() -> None:
    answers = sorted({row["answer"] for row in rows("math500.jsonl")})
    accepted = {
        (gold, answer)
        for index, gold in enumerate(answers)
        for answer in answers[index % 3 :: 3]  # a third of all pairs, to stay quick
        if gold != answer and equal(gold, answer) is not False
    }
    assert accepted <= ACCEPTED_PAIRS
    assert accepted


@pytest.mark.parametrize("gold", [None, "", "  \n"])
def test_no_ground_truth_is_an_error_without_reward(gold: str | None) -> None:
    assert MathVerifier().grade(Task(r"\boxed{5}", gold)) == Grade(None, "error", None, "no ground truth")


@pytest.mark.parametrize("gold", [r"\frac{1}{", r"\unknowncommand{5}", "}{", "???", "1" * 3000])
def test_a_ground_truth_that_cannot_be_read_is_an_error(gold: str) -> None:
    grade = MathVerifier().grade(Task(r"\boxed{5}", gold))
    assert (grade.reward, grade.verdict) == (None, "error")
    assert grade.detail is not None
    assert "ground truth" in grade.detail


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("", "wrong"),
        (" \n", "wrong"),
        ("no idea", "unparseable"),
        (r"\boxed{5", "unparseable"),
        (r"\boxed{\frac{1}{}}", "unparseable"),
        (r"\boxed{@#!}", "unparseable"),
        (r"\boxed{" + "1" * 2500 + "}", "unparseable"),
        (r"\boxed{6}", "wrong"),
        (r"\boxed{cat}", "wrong"),
    ],
)
def test_what_the_model_caused_is_reward_zero(response: str, verdict: str) -> None:
    grade = MathVerifier().grade(Task(response, "5"))
    assert (grade.reward, grade.verdict) == (0.0, verdict)


def test_text_of_the_model_is_never_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    for code in (
        f"__import__('os').system('touch {target}')",
        f"open('{target}','w')",
        f"\\text{{exec('{target}')}}",
    ):
        assert MathVerifier().grade(Task(f"\\boxed{{{code}}}", "5")).reward == 0.0
    assert not target.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "10^{10^{10}}", "((((9!)!)!)!)", "9^{9^{9^9}}", "{" * 900 + "5" + "}" * 900, "(" * 900 + "5" + ")" * 900,
        "-" * 1900 + "5", "5" + "!" * 1900, "5" + "^2" * 900,
        r"\frac" * 380, r"\sqrt" * 380, "1," * 900 + "1",
        "\\left(" * 300,
        "\\text{" * 300, "|" * 1900, "x" * 1900, "1/" * 900 + "1", "+".join("abcdefgh" * 100),
        "2^{2^{" * 90 + "2" + "}}" * 90,
        "e^{e^{e^{e^{9}}}}", r"\sin(10^{10^{10}})", "1e9999", "a b " * 450, r"\text{a}" * 270, "\\begin{pmatrix}" * 100,
        r"\pm" * 600,
        r"(1,(" * 400, "5 " * 900, r"\binom{99999}{50000}", "5%" * 900, "\u200b" * 1900,
        r"\cup".join("(1,2)" for _ in range(150)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gold", ["5", r"\frac{\sqrt{x}}{2}", r"(1, 2) \cup (3, \infty)"])
def test_the_part_in_the_callers_process_is_quick_for_hostile_answers(answer: str, gold: str) -> None:
    start = time.process_time()
    prepared = MathVerifier().prepare(Task(f"\\boxed{{{answer}}}", gold))
    assert time.process_time() - start < 0.5
    assert isinstance(prepared, Pending | Grade)


@given(
    gold=st.text(alphabet="0123456789xy+-*/^_(){}[],.\\frac sqrt|!%=<>∪π", max_size=30),
    answer=st.text(max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_the_quick_part_never_raises(gold: str, answer: str) -> None:
    for left, right in ((gold, answer), (answer, gold), (gold, gold[::-1])):
        assert equal(left, right) in (True, False, None)


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


def test_loading_a_verifier_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from primecli.verifiers import *; "
        "assert load_verifier('math').grade(Task('#### 7', '7')).reward == 1; "
        "assert not {'sympy', 'torch', 'transformers', 'latex2sympy2_extended'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[3])


def test_unknown_names_and_options_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="there is no verifier 'maths'"):
        load_verifier("maths")
    with pytest.raises(UsageError, match="does not take"):
        load_verifier("math", {"strictness": 3})


def test_a_comparison_that_sympy_cannot_make_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise NotImplementedError("cannot decide")

    task = Task(r"\boxed{\sum_{k=1}^{3} k}", "6")
    assert MathVerifier().grade(task).verdict == "correct"
    monkeypatch.setattr("sympy.simplify", cannot)
    with pytest.raises(NotImplementedError):  # which the pool makes an error without a reward
        MathVerifier().grade(task)
