"""Programs that attack the grading: each is wrong or a timeout, in time, and the rows beside it are graded right."""

import itertools
import json
from typing import Any

import pytest

from primecli.verifiers import Task
from primecli.verifiers.code.verifier import CodeVerifier
from primecli.verifiers.pool import GradingPool
from primecli.verifiers.sandbox.process import bwrap_problem
from tests.verifiers.code.hostile import FORMS, HOSTILE, LISTED, RIGHT, task

SANDBOX = pytest.mark.skipif(bwrap_problem() is not None, reason=f"no sandbox: {bwrap_problem()}")
LIMIT = 3.0  # seconds of wall-clock time for all tests of a program
OPTIONS: dict[str, Any] = {"test_timeout": 0.25, "program_timeout": LIMIT, "memory_mb": 512}


def check_hostile_programs(keys: list[tuple[str, str]], sandbox: str) -> None:
    """Grades hostile programs in one pool, each fourth followed by a right one; raises AssertionError.

    keys: the name of each in HOSTILE, and the form of its tests.

    The pool's deadline is twice the time limit of a program: one that takes longer is an error.
    """
    tasks, expected = [], []
    for number, (name, form) in enumerate(keys):
        tasks.append(task(HOSTILE[name], form))
        expected.append({"wrong", "timeout"})
        if number % 4 == 0:
            tasks.append(task(f"{RIGHT} + 0 * {number}", form))  # the pool grades equal rows once
            expected.append({"correct"})
    with GradingPool("code", workers=3, options={**OPTIONS, "sandbox": sandbox}) as pool:
        pool.timeout = 2 * LIMIT
        grades = pool.grade_list(tasks)
    for row, (grade, verdicts) in enumerate(zip(grades, expected, strict=True)):
        assert grade is not None
        assert grade.verdict in verdicts, (tasks[row].response, grade)
        assert grade.reward == float(verdicts == {"correct"})
        (grade.first_failure or "").encode()  # a column can hold it


@SANDBOX
def test_programs_that_once_had_no_reward() -> None:
    check_hostile_programs([(name, form) for name in LISTED for form in FORMS], "bwrap")


@SANDBOX
def test_other_hostile_programs() -> None:
    others = [name for name in HOSTILE if name not in LISTED]
    check_hostile_programs(list(zip(others, itertools.cycle(FORMS), strict=False)), "bwrap")


@SANDBOX
@pytest.mark.parametrize(
    ("program", "truth", "verdict"),
    [
        ("LIMIT = range(10**12)\ndef f(x): return 1", {"asserts": ["for i in LIMIT: pass"]}, "timeout"),
        ("half = 'x'\ndef f(x): return 1", {"test": "K = half + 1\ndef check(f): pass", "entry_point": "f"}, "wrong"),
        (
            "def half(x): raise ImportError(x)\ndef f(x): return 1",
            {"test": "K = half(4)\ndef check(f): pass", "entry_point": "f"},
            "wrong",
        ),
        (
            "def f(x): raise ImportError(x)",
            {"test": "def check(f):\n    try: f(1)\n    finally: f(2)", "entry_point": "f"},
            "wrong",
        ),
        (
            "def f(x):\n    while True: pass",
            {
                "test": "def check(f):\n    for i in range(99):\n        try: f(i)\n        except: pass",
                "entry_point": "f",
            },
            "timeout",
        ),
        ("def f(x): return 10**300_000", {"asserts": ["f(1) ** f(1)"]}, "timeout"),
        ("def f(x): return 10**9", {"asserts": ["[0] * f(1)"]}, "wrong"),
    ],
)
def test_what_a_programs_values_do_to_the_tests_is_its_own_doing(
    program: str, truth: dict[str, Any], verdict: str
) -> None:
    verifier = CodeVerifier(sandbox="bwrap", **OPTIONS)
    grade = verifier.grade(Task(f"```python\n{program}\n```", json.dumps(truth)))
    verifier.close()
    assert (grade.reward, grade.verdict) == (0.0, verdict), grade


def check_every_program_in_every_form() -> None:
    """The whole table in both sandboxes, which takes minutes: for longer runs than that of the test suite."""
    for sandbox in ("bwrap", "limits"):
        check_hostile_programs([(name, form) for name in HOSTILE for form in FORMS], sandbox)
