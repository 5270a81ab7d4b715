import pytest

from primecli.verifiers import Task
from primecli.verifiers.math.equal_by_sympy import AnswerUnreadable, GoldUnreadable, sympy_equal
from primecli.verifiers.math.verifier import MathVerifier


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        (r"\sum_{k=1}^{3} k", "6", True),
        (r"\sum_{k=1}^{3} k", "7", False),
        (r"\int_0^1 x^2 dx", r"\frac{1}{3}", True),
        (r"\int_0^1 x^2 dx", "0.333", False),
        (r"\lim_{x\to 0} \frac{\sin x}{x}", "1", True),
        (r"\prod_{k=1}^{3} (2k)", "48", True),
        (r"\begin{pmatrix}0&1\\1&0\end{pmatrix}^1", r"\sqrt[5]{x^4}", False),
    ],
)
def test_what_only_sympy_reads(gold: str, answer: str, same: bool) -> None:
    assert sympy_equal(gold, answer) is same
    assert sympy_equal(answer, gold) is same


@pytest.mark.parametrize("text", [r"\frac{1}{", r"\unknowncommand{5}", r"\int_{", "2 3", "7'"])
def test_it_is_clear_whose_text_cannot_be_read(text: str) -> None:
    with pytest.raises(AnswerUnreadable):
        sympy_equal("5", text)
    if "\\" in text:
        with pytest.raises(GoldUnreadable):
            sympy_equal(text, "5")
    else:  # plain text that is not an expression is only equal to itself
        assert sympy_equal(text, "5") is False


def test_an_answer_that_divides_by_zero_has_no_value() -> None:
    with pytest.raises(AnswerUnreadable):
        sympy_equal("5", r"10 \mod 0")
    with pytest.raises(GoldUnreadable):
        sympy_equal(r"10 \mod 0", "5")


def test_an_answer_with_which_sympy_cannot_compare_is_the_models_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise NotImplementedError("cannot decide")

    task = Task(r"\boxed{\sum_{k=1}^{3} k}", "6")
    assert MathVerifier().grade(task).verdict == "correct"
    monkeypatch.setattr("sympy.simplify", cannot)
    grade = MathVerifier().grade(task)  # the gold answer alone raises nothing
    assert (grade.verdict, grade.reward) == ("unparseable", 0.0)
