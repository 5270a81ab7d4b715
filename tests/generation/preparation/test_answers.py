from __future__ import annotations

import pytest

from primecli.generation.preparation.answers import differ, differing, unreadable, verifier_names
from primecli.verifiers import Task, load_verifier

PLAIN = ["7", "-2.5", "3/4", r"\frac{3}{7}", r"-\dfrac{1}{2}"]


def test_what_is_taken_for_readable_unread_is_readable() -> None:
    verifier = load_verifier("math")
    assert {verifier.grade(Task(f"\\boxed{{{answer}}}", answer)).verdict for answer in PLAIN} == {"correct"}
    assert not unreadable(PLAIN, ["math"] * len(PLAIN), workers=1, done=lambda count: None)


def test_answers_that_cannot_be_graded_with() -> None:
    answers = [r"\cotx", "x^2 + 1", "3 + 4 = 7\n#### 7", '{"asserts": ["assert f()"]}', "7", None, "anything"]
    names = ["math", "math", "math", "code", "code", "math", "mine"]
    counted: list[int] = []
    found = unreadable(answers, names, workers=1, done=counted.append)
    assert found.keys() == {("math", r"\cotx"), ("code", "7")}
    assert "cannot be read" in found["math", r"\cotx"]
    assert sum(counted) == 6


@pytest.mark.parametrize(
    ("first", "second", "name", "expected"),
    [
        ("1/2", "0.5", "math", False),
        (r"\sqrt{8}", r"2\sqrt{2}", "math", False),
        ("x^2", "x^3", "math", True),
        ("3 + 4 = 7\n#### 7", "7", "math", False),
        ("7", None, "math", False),
        ('{"asserts": ["a"]}', '{"asserts": ["b"]}', "code", False),
        ("a", "b", "mine", True),
        ("a ", "a", "mine", False),
    ],
)
def test_whether_answers_differ(first: str, second: str | None, name: str, expected: bool) -> None:
    assert differ(first, second, name) is expected


def test_pairs_by_all_that_the_verifier_can_do() -> None:
    assert differing([("1/2", "0.5"), ("x^2", "x^3"), (r"\cotx", "1")], workers=1) == [False, True, False]


def test_verifiers_are_chosen_as_verify_does() -> None:
    assert verifier_names(["math", "code", "made", "made"], ["a", "b", "code", "c"]) == ["math", "code", "code", "math"]
