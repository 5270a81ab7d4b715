import time
from pathlib import Path

import pytest

from primecli.verifiers import Grade, Pending, Task
from primecli.verifiers.math.verifier import MathVerifier
from tests.verifiers.math.grading import data_rows

PERCENT_OUTSIDE = [" 1 = \\boxed{10}\\%$.", "boxed{10}$ percent."]


def test_every_worked_solution_of_gsm8k_is_correct() -> None:
    verifier = MathVerifier()
    solutions = [row["answer"] for row in data_rows("gsm8k_test.jsonl")]
    grades = [verifier.grade(Task(text, text.split("#### ")[1])) for text in solutions]
    assert sum(grade.reward == 1.0 for grade in grades) == len(solutions) == 1319


def test_every_worked_solution_of_math500_is_correct() -> None:
    verifier = MathVerifier()
    problems = list(data_rows("math500.jsonl"))
    missed = [row for row in problems if verifier.grade(Task(row["solution"], row["answer"])).reward != 1.0]
    # the boxes of two solutions leave out the percent sign or word that follows them, and so do their golds
    assert ([row["solution"][-19:] for row in missed], len(problems)) == (PERCENT_OUTSIDE, 500)


def test_worked_solutions_serve_as_ground_truth() -> None:
    verifier = MathVerifier()
    for row in list(data_rows("math500.jsonl"))[::5]:
        assert verifier.grade(Task(f"\\boxed{{{row['answer']}}}", row["solution"])).reward == 1.0, row


def test_the_solution_of_another_gsm8k_problem_is_wrong() -> None:
    verifier = MathVerifier()
    solutions = [row["answer"] for row in data_rows("gsm8k_test.jsonl")]
    golds = [text.split("#### ")[1] for text in solutions]
    pairs = [
        (text, gold)
        for text, gold, own in zip(solutions, golds[1:] + golds[:1], golds, strict=True)
        if float(own.replace(",", "")) != float(gold.replace(",", ""))
    ]
    assert len(pairs) > 1200
    assert {verifier.grade(Task(text, gold)).verdict for text, gold in pairs} == {"wrong"}


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
        (r"\boxed{10 \mod 0}", "unparseable"),
    ],
)
def test_what_the_model_caused_is_reward_zero(response: str, verdict: str) -> None:
    grade = MathVerifier().grade(Task(response, "5"))
    assert (grade.reward, grade.verdict) == (0.0, verdict)


@pytest.mark.parametrize("gold", [r"10 \mod 0", r"\sqrt{2} + (10 \mod 0)"])
def test_a_gold_answer_without_a_value_is_not_the_models_fault(gold: str) -> None:
    grade = MathVerifier().grade(Task(r"\boxed{7}", gold))
    assert (grade.reward, grade.verdict) == (None, "error")


@pytest.mark.parametrize(
    "answer",
    [
        "((30!)!)!", "((8!)!)!", r"10 \mod 0", r"10 \mod 0, 3", r"\bmod 0", "9^9^9^9", "9^{9^{9^{9}}}", "0^{-1}",
        "10^{10^{10}}", r"\binom{10^{30}}{10^{29}}", r"\sin(10^{10^{10}})", r"1.0000001^{10^{40}}", "(10^{27})!",
        r"\sqrt{" * 30 + "5" + "}" * 30, "1" * 1900, "1" * 100_000, "{" * 10_000 + "5" + "}" * 10_000,
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}" * 40, r"\begin{cases}" * 100, r"\pm" * 500,
        r"x \equiv " * 150 + r"\pmod{7}", r"\ldots+" * 250, "=>" * 900, r"\hat{" * 300, "<" + "1," * 600 + ">",
    ],
)  # fmt: skip
@pytest.mark.parametrize("gold", ["5", "x^2 + C", r"x \equiv 3 \pmod 7"])
def test_an_answer_that_has_no_value_or_a_huge_one_is_reward_zero_soon(answer: str, gold: str) -> None:
    MathVerifier().warm_up()
    start = time.process_time()
    grade = MathVerifier().grade(Task(f"\\boxed{{{answer}}}", gold))
    assert (grade.reward, grade.verdict in ("wrong", "unparseable")) == (0.0, True), grade
    assert time.process_time() - start < 1


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
        r"\pm" * 600, r"5\text{" + r"\alpha" * 300, "5 " + "a " * 900, "1 hour " * 280, r"3\text{ m}\cdot " * 120,
        r"\text{\alpha " * 140, "5" + "é" * 1900, "1, " * 600 + "and 1", r"5\text{ a}^{-1}" * 130, r"\\\\" * 470,
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
