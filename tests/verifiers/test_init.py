"""What is in primecli/verifiers/__init__.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.errors import UsageError
from primecli.files import file_hash
from primecli.verifiers import (
    MAX_DETAIL_CHARS,
    VERIFIERS,
    VERSIONS,
    FunctionVerifier,
    Grade,
    Task,
    choose_verifier,
    load_verifier,
    verifier_identity,
)

ROOT = Path(__file__).resolve().parents[2]


def test_loading_a_verifier_imports_nothing_heavy() -> None:
    code = (
        "import sys; from primecli.verifiers import *; "
        "assert load_verifier('math').grade(Task('#### 7', '7')).reward == 1; "
        "assert not {'sympy', 'torch', 'transformers', 'latex2sympy2_extended'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_names_and_options_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="there is no verifier 'maths'"):
        load_verifier("maths")
    with pytest.raises(UsageError, match="does not take"):
        load_verifier("math", {"strictness": 3})
    with pytest.raises(UsageError, match="No module named 'no_such_module'"):
        load_verifier("no_such_module:grade")
    with pytest.raises(UsageError, match="no attribute 'no_such_function'"):
        load_verifier("json:no_such_function")


@pytest.mark.parametrize(
    ("result", "grade"),
    [
        (1, Grade(1.0, "correct")),
        (True, Grade(1.0, "correct")),
        (0.25, Grade(0.25, "wrong")),
        (Grade(0.0, "timeout"), Grade(0.0, "timeout")),
        (1.5, Grade(None, "error", detail="the verifier returned 1.5, not a reward in [0, 1]")),
        (float("nan"), Grade(None, "error", detail="the verifier returned nan, not a reward in [0, 1]")),
        (np.float32(1.0), Grade(1.0, "correct")),
        (np.float64(0.25), Grade(0.25, "wrong")),
        (np.bool_(True), Grade(1.0, "correct")),
        (
            np.array([1.0, 0.0]),
            Grade(None, "error", detail="the verifier returned array([1., 0.]), not a reward in [0, 1]"),
        ),
        ("yes", Grade(None, "error", detail="the verifier returned 'yes', not a reward in [0, 1]")),
    ],
)
def test_a_function_is_a_verifier(result: Any, grade: Grade) -> None:
    assert FunctionVerifier(lambda response, ground_truth: result).grade(Task("x", "y")) == grade


def test_a_long_result_is_cut() -> None:
    grade = FunctionVerifier(lambda response, ground_truth: "x" * 1000).grade(Task("x", "y"))  # type: ignore[arg-type,return-value]
    assert len(grade.detail or "") == MAX_DETAIL_CHARS


@pytest.mark.parametrize(
    ("reward", "verdict"), [(1.0, "right"), (None, "correct"), (0.0, "error"), (1.5, "correct"), (-0.5, "wrong")]
)
def test_a_grade_that_contradicts_itself_is_a_bug(reward: float | None, verdict: str) -> None:
    with pytest.raises(AssertionError):
        Grade(reward, verdict)


@pytest.mark.parametrize(
    ("ability", "data_source", "chosen", "verifier"),
    [
        (None, None, {}, "math"),
        ("code", "gsm8k", {}, "code"),
        ("logic", "code", {}, "code"),
        ("logic", "puzzles", {}, "math"),
        ("logic", "puzzles", {"puzzles": "mine:grade"}, "mine:grade"),
        ("logic", "puzzles", {"puzzles": "mine:grade", "logic": "yours:grade"}, "yours:grade"),
        ("code", "apps", {"": "mine:grade"}, "mine:grade"),
        ("code", "apps", {"": "mine:grade", "apps": "code"}, "code"),
    ],
)
def test_rows_choose_their_verifier(
    ability: str | None, data_source: str | None, chosen: dict[str, str], verifier: str
) -> None:
    assert choose_verifier(ability, data_source, chosen) == verifier


def test_a_verifier_is_identified_by_its_version_or_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VERIFIERS.keys() == VERSIONS.keys()
    assert verifier_identity("math") == str(VERSIONS["math"])
    module = tmp_path / "verifier_of_this_test.py"
    module.write_text("def grade(response, ground_truth): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert verifier_identity("verifier_of_this_test:grade") == file_hash(module)
    for name, message in (
        ("verifier_of_this_test.py:grade", "leave out .py: verifier_of_this_test:grade"),
        ("no_such_module:grade", "is its directory on PYTHONPATH"),
    ):
        with pytest.raises(UsageError, match=message):
            verifier_identity(name)


def test_texts_of_a_grade_can_be_encoded() -> None:
    grade = Grade(0.0, "wrong", "é\udc80", None, 0, 1, "ValueError: \ud800")
    assert (grade.extracted_answer, grade.first_failure) == ("é\\udc80", "ValueError: \\ud800")
