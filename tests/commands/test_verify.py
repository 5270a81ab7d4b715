from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from primecli.shards import schema
from primecli.verifiers.sandbox.process import bwrap_problem
from tests.builders import rollout, write_shards
from tests.conftest import read_rows, summary

SANDBOX = "limits" if bwrap_problem() else "bwrap"
RIGHT = "```python\ndef double(x):\n    return 2 * x\n```"
WRONG = "```python\ndef double(x):\n    return x + x if x < 3 else 0\n```"
TRUTH = json.dumps({"asserts": ["assert double(1) == 2", "assert double(2) == 4", "assert double(5) == 10"]})


def mixed(directory: Path) -> Path:
    """One group of programs and one of math answers, in the same shard."""
    programs = [
        rollout(0, index, 2, ability="code", ground_truth=TRUTH, response=response)
        for index, response in enumerate((RIGHT, WRONG))
    ]
    answers = [rollout(1, index, 2, response=f"\\boxed{{{7 + index}}}") for index in range(2)]
    return write_shards(directory, [*programs, *answers])


def test_rows_go_to_the_verifier_of_their_ability(tmp_path: Path, primecli: Any) -> None:
    primecli("verify", mixed(tmp_path / "generate"), "--sandbox", SANDBOX, "--workers", 1)
    rows = read_rows(tmp_path / "verify")
    assert [row[schema.VERDICT] for row in rows] == ["correct", "wrong", "correct", "wrong"]
    assert [row[schema.TESTS_PASSED] for row in rows] == [3, 2, None, None]
    assert [row[schema.TESTS_TOTAL] for row in rows] == [3, 3, None, None]
    assert rows[1][schema.FIRST_FAILURE].startswith("test 3 of 3: AssertionError")


def test_a_program_can_be_rewarded_for_a_fraction_of_its_tests(tmp_path: Path, primecli: Any) -> None:
    primecli("verify", mixed(tmp_path / "generate"), "--sandbox", SANDBOX, "--code-reward", "fraction", "--workers", 1)
    rewards = [row[schema.OUTCOME_REWARD] for row in read_rows(tmp_path / "verify")]
    assert rewards == pytest.approx([1, 2 / 3, 1, 0])


def test_what_a_program_raises_can_always_be_written(tmp_path: Path, primecli: Any) -> None:
    program = "```python\ndef double(x): raise ValueError(chr(0xDC80))\n```"
    rows = [rollout(0, 0, 2, ability="code", ground_truth=TRUTH, response=program)]
    rows += [rollout(0, 1, 2, ability="code", ground_truth=TRUTH, response=RIGHT)]
    primecli("verify", write_shards(tmp_path / "generate", rows), "--sandbox", SANDBOX, "--workers", 1)
    found = read_rows(tmp_path / "verify")
    assert [row[schema.OUTCOME_REWARD] for row in found] == [0.0, 1.0]
    assert found[0][schema.FIRST_FAILURE] == r"test 1 of 3: ValueError: \udc80 (line 1 of the tests)"


def test_options_of_the_code_verifier_matter_to_code_alone(tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "math", [rollout(1, index, 2) for index in range(2)])
    first = primecli("verify", directory, "--out", tmp_path / "a")
    assert primecli("verify", directory, "--out", tmp_path / "a", "--test-timeout", 9).paths == first.paths
    mixed(tmp_path / "generate")
    common = ["verify", tmp_path / "generate", "--sandbox", SANDBOX, "--workers", 1]
    primecli(*common)
    result = primecli(*common, "--test-timeout", 9, check=False)
    assert (result.code, "verifiers was" in result.line()) == (1, True)


def test_a_users_own_verifier(tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_verifier.py").write_text(
        "def grade(response, ground_truth):\n"
        "    if response == 'break':\n        raise RuntimeError('no idea')\n"
        "    return len(response) == len(ground_truth)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    rows = [
        rollout(0, index, 3, data_source="mine", ability=None, ground_truth="abc", response=response)
        for index, response in enumerate(("xyz", "x", "break"))
    ]
    directory = write_shards(tmp_path / "generate", [*rows, rollout(1, 0, 1, response="\\boxed{7}")])
    primecli("verify", directory, "--verifier", "mine=my_verifier:grade", "--max-errors", 1, "--workers", 1)
    found = read_rows(tmp_path / "verify")
    assert [row[schema.VERDICT] for row in found] == ["correct", "wrong", "error", "correct"]
    assert "RuntimeError: no idea" in found[2][schema.VERIFIER_DETAIL]
    again = primecli("verify", directory, "--verifier", "mine=my_verifier:grade", "--out", tmp_path / "b", check=False)
    assert (again.code, "the first: RuntimeError: no idea" in again.err) == (4, True)
    typo = primecli("verify", directory, "--verifier", "mime=my_verifier:grade", "--out", tmp_path / "c")
    assert "no row has the ability or data source mime" in typo.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verifier", "nonsense"], "there is no verifier 'nonsense'"),
        (["--verifier", "x=no_such_module:f"], "there is no module no_such_module"),
        (["--verifier", "x=mine.py:f"], "leave out .py: mine:f"),
        (["--verifier", "x=math", "--verifier", "x=code"], "x would have two verifiers"),
    ],
)
def test_unknown_verifiers_are_refused(arguments: list[str], message: str, tmp_path: Path, primecli: Any) -> None:
    result = primecli("verify", mixed(tmp_path / "generate"), *arguments, check=False)
    assert (result.code, message in result.line()) == (2, True)


def test_without_a_sandbox_nothing_is_graded(tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primecli.verifiers.sandbox.process.bwrap_problem", lambda: "bubblewrap is not installed")
    result = primecli("verify", mixed(tmp_path / "generate"), check=False)
    assert result.code == 2
    assert "bubblewrap" in result.line()


def test_a_weaker_sandbox_says_what_it_does_not_protect(tmp_path: Path, primecli: Any) -> None:
    assert "limits" in primecli("verify", mixed(tmp_path / "g"), "--sandbox", "limits", "--workers", 1).err


def test_long_responses_lose_reward_softly(tmp_path: Path, primecli: Any) -> None:
    lengths, answers = (12, 16, 20, 25, 18, 16), ("7", "7", "7", "7", "8", None)
    rows = [
        rollout(
            *(0, index, len(lengths)),
            response=f"\\boxed{{{answer or 7}}}",
            ground_truth="7" if answer else None,
            response_ids=list(range(length)),
            rollout_logprobs=[-1.0] * length,
        )
        for index, (length, answer) in enumerate(zip(lengths, answers, strict=True))
    ]
    directory = write_shards(tmp_path / "generate", rows)
    primecli("verify", directory, "--workers", 1, "--overlong", 20, 8, "--overlong-penalty", 0.5, "--max-errors", 1)
    found = read_rows(tmp_path / "verify")
    assert [row[schema.OUTCOME_REWARD] for row in found] == [1.0, 0.75, 0.5, 0.5, 0.0, None]
    assert [row[schema.VERDICT] for row in found] == [*["correct"] * 4, "wrong", "error"]
    metrics = summary(tmp_path / "verify")["metrics"]
    assert (metrics["accuracy"], metrics["reward_mean"], metrics["overlong"]) == (0.8, 2.75 / 5, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overlong", 20, 0], "--overlong 20 0: the buffer must be between 1 and the limit"),
        (["--overlong", 20, 21], "--overlong 20 21: the buffer must be between 1 and the limit"),
        (["--overlong-penalty", 0.5], "--overlong-penalty needs --overlong"),
    ],
)
def test_impossible_limits_are_refused(arguments: list[Any], message: str, tmp_path: Path, primecli: Any) -> None:
    result = primecli("verify", tmp_path, *arguments, check=False)
    assert (result.code, message in result.line()) == (2, True)
