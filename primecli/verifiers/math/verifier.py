"""Grades answers to mathematics problems: finds the final answer and compares it with the gold answer.

What the model caused is reward 0; what the data or this grader caused is an error without a reward. It does
not check the reasoning, and it never evaluates model text as code.
"""

from __future__ import annotations

from functools import lru_cache

from primecli.verifiers import Grade, Pending, Task
from primecli.verifiers.math.algebra import AnswerUnreadable, GoldUnreadable
from primecli.verifiers.math.equal import check_readable, equal
from primecli.verifiers.math.extract import MAX_ANSWER_CHARS, extract_answer

MAX_RECURSION_DETAIL = 300


class MathVerifier:
    """Compares the final answer of a response with `ground_truth`, LaTeX or plain.

    last_number: whether a response without a box or a final-answer phrase is graded by its last number.

    >>> MathVerifier().grade(Task("so she has 7 left", "7")).verdict
    'correct'
    >>> MathVerifier(last_number=False).grade(Task("so she has 7 left", "7")).verdict
    'unparseable'
    """

    def __init__(self, last_number: bool = True) -> None:
        self.last_number = last_number

    def grade(self, task: Task) -> Grade:
        """The grade of one response; may take any time for a hostile answer."""
        prepared = self.prepare(task)
        return prepared if isinstance(prepared, Grade) else self.settle(prepared)

    def prepare(self, task: Task) -> Grade | Pending:
        """The grade where strings, exact fractions and numbers of bounded size settle it.

        Bounded: extraction is linear in the response, everything after it sees at most 2,000 characters, exact
        numbers at most 60,000 bits and floating point at most 200 digits.
        """
        gold = gold_answer(task.ground_truth)
        if gold is None:
            return Grade(None, "error", detail="no ground truth")
        if not task.response.strip():
            return Grade(0.0, "wrong")
        found = extract_answer(task.response, self.last_number)
        if found is None:
            return Grade(0.0, "unparseable")
        if len(gold) > MAX_ANSWER_CHARS:
            return Grade(None, "error", found.text[:MAX_ANSWER_CHARS], f"ground truth of {len(gold)} characters")
        if len(found.text) > MAX_ANSWER_CHARS:
            return Grade(0.0, "unparseable", found.text[:MAX_ANSWER_CHARS])
        verdict = _equal_cheaply(gold, found.text)
        if verdict is None:
            return Pending(found.text, gold)
        return _grade(verdict, found.text)

    def settle(self, pending: Pending) -> Grade:
        """Compares with sympy and numbers of any size. May hang or run out of memory."""
        try:
            return _grade(bool(equal(pending.ground_truth, pending.answer, slow=True)), pending.answer)
        except GoldUnreadable as error:
            return Grade(None, "error", pending.answer, f"ground truth {error}"[:MAX_RECURSION_DETAIL])
        except AnswerUnreadable:
            return Grade(0.0, "unparseable", pending.answer)

    def probe(self, ground_truth: str) -> None:
        """Reads and evaluates the ground truth alone."""
        check_readable(ground_truth)

    def warm_up(self) -> None:
        """Imports sympy and the LaTeX parser."""
        import latex2sympy2_extended  # noqa: F401
        import mpmath  # noqa: F401
        import sympy  # noqa: F401


@lru_cache(maxsize=2048)  # a group of rollouts has one gold answer and few different answers
def _equal_cheaply(gold: str, answer: str) -> bool | None:
    return equal(gold, answer)


@lru_cache(maxsize=1024)
def gold_answer(ground_truth: str | None) -> str | None:
    """The final answer of a ground truth, which may be a whole worked solution; None where there is none.

    >>> gold_answer("3 + 4 = 7\\n#### 7"), gold_answer("7"), gold_answer("  ")
    ('7', '7', None)
    """
    if ground_truth is None or not ground_truth.strip():
        return None
    found = extract_answer(ground_truth, last_number=False)
    return found.text if found is not None else ground_truth.strip()


def _grade(correct: bool, answer: str) -> Grade:
    return Grade(1.0 if correct else 0.0, "correct" if correct else "wrong", answer)
