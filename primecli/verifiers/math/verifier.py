"""The verifier of mathematical answers: extracts the final answer and compares it with the gold answer.

Whatever the model did is reward 0; a failure of the data or of this verifier is an error without a reward. It does not
check the reasoning, and it never evaluates the model's text as code.
"""

from __future__ import annotations

from functools import lru_cache

from primecli.verifiers import MAX_DETAIL_CHARS, Grade, Pending, Task
from primecli.verifiers.math.equal import check_readable, equal
from primecli.verifiers.math.equal_by_sympy import AnswerUnreadable, GoldUnreadable
from primecli.verifiers.math.extract import MAX_ANSWER_CHARS, extract_answer

PLAIN_ANSWER = "1"
"""Any gold answer with a value can be compared with it."""


class MathVerifier:
    """Compares the final answer of a response with `ground_truth`, both in LaTeX or plain text.

    last_number: whether a response with neither a box nor a final-answer phrase is graded by its last number.

    >>> MathVerifier().grade(Task("so she has 7 left", "7")).verdict
    'correct'
    >>> MathVerifier(last_number=False).grade(Task("so she has 7 left", "7")).verdict
    'unparseable'
    """

    def __init__(self, last_number: bool = True) -> None:
        self.last_number = last_number

    def grade(self, task: Task) -> Grade:
        """Grades one response, with no bound on the time that a hostile answer takes."""
        prepared = self.prepare(task)
        return prepared if isinstance(prepared, Grade) else self.settle(prepared)

    def prepare(self, task: Task) -> Grade | Pending:
        """The grade, where comparing strings, exact fractions and numbers of bounded size gives it.

        Its time is bounded: extraction is linear in the length of the response, everything after it gets at most
        MAX_ANSWER_CHARS characters, exact numbers have at most 60,000 bits and floating point at most 200 digits.
        """
        gold = gold_answer(task.ground_truth)
        if gold is None:
            return Grade(None, "error", detail="no ground truth")
        if not task.response.strip():
            return Grade(0.0, "wrong")
        extraction = extract_answer(task.response, self.last_number)
        if extraction is None:
            return Grade(0.0, "unparseable")
        answer = extraction.text
        if len(gold) > MAX_ANSWER_CHARS:
            return Grade(None, "error", answer[:MAX_ANSWER_CHARS], f"ground truth of {len(gold)} characters")
        if len(answer) > MAX_ANSWER_CHARS:
            return Grade(0.0, "unparseable", answer[:MAX_ANSWER_CHARS])
        verdict = _equal_if_bounded(gold, answer)
        if verdict is None:
            return Pending(answer, gold)
        return _grade(verdict, answer)

    def settle(self, pending: Pending) -> Grade:
        """Compares by sympy and with numbers of any size. May hang or run out of memory: it is for a worker."""
        try:
            return _grade(bool(equal(pending.ground_truth, pending.answer, bounded=False)), pending.answer)
        except GoldUnreadable as error:
            return Grade(None, "error", pending.answer, f"ground truth {error}"[:MAX_DETAIL_CHARS])
        except AnswerUnreadable:
            return Grade(0.0, "unparseable", pending.answer)
        except MemoryError:
            raise  # the pool decides whose fault it was, in a fresh worker
        except Exception:  # sympy raises errors of any type; the answer is to blame if the gold answer raises none
            return self._grade_without(pending)

    def _grade_without(self, pending: Pending) -> Grade:
        """The grade of an answer that cannot be compared: unparseable, unless the gold answer cannot be read either."""
        try:
            self.probe(pending.ground_truth)
            equal(pending.ground_truth, PLAIN_ANSWER, bounded=False)  # a gold answer may compare with itself unread
        except MemoryError:
            raise
        except Exception as error:
            detail = f"ground truth: {type(error).__name__}: {error}"
            return Grade(None, "error", pending.answer, detail[:MAX_DETAIL_CHARS])
        return Grade(0.0, "unparseable", pending.answer)

    def probe(self, ground_truth: str) -> None:
        """Reads and evaluates the ground truth alone."""
        check_readable(ground_truth)

    def warm_up(self) -> None:
        """Imports sympy and the LaTeX parser."""
        import latex2sympy2_extended  # noqa: F401
        import mpmath  # noqa: F401
        import sympy  # noqa: F401


@lru_cache(maxsize=2048)  # the rollouts of a group share one gold answer and give few different answers
def _equal_if_bounded(gold: str, answer: str) -> bool | None:
    try:
        return equal(gold, answer)
    except Exception:  # whose fault it is, `settle` finds out
        return None


@lru_cache(maxsize=1024)
def gold_answer(ground_truth: str | None) -> str | None:
    """The final answer in a ground truth, which may be a whole worked solution; None for an empty ground truth.

    >>> gold_answer("3 + 4 = 7\\n#### 7"), gold_answer("7"), gold_answer("  ")
    ('7', '7', None)
    """
    if ground_truth is None or not ground_truth.strip():
        return None
    extraction = extract_answer(ground_truth, last_number=False)
    return extraction.text if extraction is not None else ground_truth.strip()


def _grade(correct: bool, answer: str) -> Grade:
    return Grade(1.0 if correct else 0.0, "correct" if correct else "wrong", answer)
