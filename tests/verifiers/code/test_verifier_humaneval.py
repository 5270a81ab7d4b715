"""All of HumanEval: every canonical solution is correct, and none that returns something wrong is."""

import gzip
import json
from typing import Any

import pytest

from primecli.verifiers import Grade, Task
from primecli.verifiers.pool import GradingPool
from primecli.verifiers.sandbox.process import bwrap_problem
from tests.conftest import DATA

FILE = DATA / "HumanEval.jsonl.gz"

pytestmark = [
    pytest.mark.skipif(bwrap_problem() is not None, reason=f"no sandbox: {bwrap_problem()}"),
    pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is absent"),
]

LIAR = """
_right = {name}
class _Liar(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def {name}(*arguments, **named):
    _right(*arguments, **named)
    return _Liar(-987654321)
"""


@pytest.fixture(scope="module")
def problems() -> list[dict[str, Any]]:
    with gzip.open(FILE, "rt") as lines:
        return [json.loads(line) for line in lines]


def verdicts(tasks: list[Task]) -> list[Grade]:
    with GradingPool("code", workers=2, timeout=300, options={"sandbox": "bwrap"}) as pool:
        return [grade for grade in pool.grade_list(tasks) if grade is not None]


def test_canonical_solutions_are_correct(problems: list[dict[str, Any]]) -> None:
    tasks = []
    for number, row in enumerate(problems):
        truth = {"test": row["test"], "entry_point": row["entry_point"]}
        if number % 2:  # a completion of the prompt
            tasks.append(Task(row["canonical_solution"], json.dumps({**truth, "prompt": row["prompt"]})))
        else:
            tasks.append(Task(f"```python\n{row['prompt']}{row['canonical_solution']}```", json.dumps(truth)))
    grades = verdicts(tasks)
    assert len(grades) == 164
    assert [(row["task_id"], g) for row, g in zip(problems, grades, strict=True) if g.verdict != "correct"] == []


def test_none_is_correct_with_a_wrong_return(problems: list[dict[str, Any]]) -> None:
    tasks = []
    for row in problems:
        truth = {"test": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}
        program = row["prompt"] + row["canonical_solution"] + LIAR.format(name=row["entry_point"])
        tasks.append(Task(f"```python\n{program}```", json.dumps(truth)))
    grades = verdicts(tasks)
    assert len(grades) == 164
    assert [row["task_id"] for row, grade in zip(problems, grades, strict=True) if grade.reward != 0.0] == []
