"""Answers that the verifier cannot read, and whether two answers are the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from primecli.verifiers import Grade, Task, choose_verifier

_PLAIN_NUMBER = re.compile(r"-?(?:\d{1,15}(?:\.\d{1,15})?|\d{1,9}/[1-9]\d{0,8}|\\[dt]?frac\{\d{1,9}\}\{[1-9]\d{0,8}\})")
"""Answers that are readable for certain, as most are: to ask the verifier takes a millisecond for each."""

Advance = Callable[[int], None]


def verifier_names(abilities: Sequence[str], sources: Sequence[str]) -> list[str]:
    """The verifier of each row, as `verify` chooses it."""
    chosen: dict[tuple[str, str], str] = {}
    return [
        chosen[key] if key in chosen else chosen.setdefault(key, choose_verifier(*key, {}))
        for key in zip(abilities, sources, strict=True)
    ]


def unreadable(
    answers: Sequence[str | None], names: Sequence[str], *, workers: int | None, done: Advance
) -> dict[tuple[str, str], str]:
    """Why answers cannot be graded with, by verifier and answer.

    An answer in maths must be readable, and a response that gives it must be graded as right; the tests of a program
    must be in a form that the code verifier knows. Answers of other verifiers are not looked at.

    names: the verifier of each row. done: called with the number of answers that were looked at.
    """
    wanted = dict.fromkeys((name, answer) for name, answer in zip(names, answers, strict=True) if answer is not None)
    found = {("code", answer): why for name, answer in wanted if name == "code" and (why := _code_problem(answer))}
    maths = [answer for name, answer in wanted if name == "math" and not _PLAIN_NUMBER.fullmatch(answer)]
    done(len(wanted) - len(maths))
    return {**found, **{("math", answer): why for answer, why in _math_problems(maths, workers, done).items()}}


def _code_problem(answer: str) -> str | None:
    from primecli.verifiers.code.ground_truth import DataError, read_truth

    try:
        read_truth(answer)
    except DataError as error:
        return str(error)
    return None


def _math_problems(answers: Sequence[str], workers: int | None, done: Advance) -> Mapping[str, str]:
    from primecli.verifiers.math.verifier import PLAIN_ANSWER
    from primecli.verifiers.pool import GradingPool

    if not answers:
        return {}
    tasks = [Task(f"\\boxed{{{given}}}", answer) for answer in answers for given in (PLAIN_ANSWER, _final(answer))]
    found: dict[str, str] = {}
    with GradingPool("math", workers) as pool:
        for index, grade in pool.grade_all(tasks):
            answer = answers[index // 2]
            if grade.verdict == "error":
                found[answer] = grade.detail or "it cannot be read"
            elif index % 2 and grade.verdict != "correct":
                found.setdefault(answer, f"a response that gives this answer is graded {grade.verdict}")
            done(index % 2)
    return found


def _final(answer: str) -> str:
    from primecli.verifiers.math.verifier import gold_answer

    return gold_answer(answer) or answer


def differ(first: str | None, second: str | None, name: str) -> bool | None:
    """Whether two answers differ, as far as that can be told at once; None where it takes a comparison by sympy.

    name: their verifier. The tests of programs never differ: another set of tests may be of the same problem.
    """
    if first is None or second is None or name == "code" or first.strip() == second.strip():
        return False
    if name != "math":
        return True
    from primecli.verifiers.math.verifier import MathVerifier

    prepared = MathVerifier().prepare(Task(f"\\boxed{{{_final(second)}}}", first))
    return prepared.verdict in ("wrong", "unparseable") if isinstance(prepared, Grade) else None


def differing(pairs: Sequence[tuple[str, str]], workers: int | None) -> list[bool]:
    """Whether the answers of each pair differ, by all that the math verifier can do; an error or a timeout is no."""
    from primecli.verifiers.pool import GradingPool

    if not pairs:
        return []
    with GradingPool("math", workers) as pool:
        grades = pool.grade_list([Task(f"\\boxed{{{_final(second)}}}", first) for first, second in pairs])
    return [grade is not None and grade.verdict in ("wrong", "unparseable") for grade in grades]
