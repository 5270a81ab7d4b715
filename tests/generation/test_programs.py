from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from primecli.errors import InputError
from primecli.generation.prompts import Prompt, PromptColumns, read_prompts
from primecli.verifiers.code.ground_truth import AssertTests, CallTests, CheckTest, StdinTests, read_truth

HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "def check(f):\n    assert f(1) == 1\n",
}
MBPP = {
    "task_id": 2,
    "prompt": "Write f.",
    "test_imports": ["import math"],
    "test_list": ["assert f(1) == 1", "assert f(2) == 2"],
}
LIVE = {
    "question_id": "abc",
    "question_content": "Add two numbers.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
    "metadata": "{}",
}
LEET = {
    "task_id": "two-sum",
    "query": "Two sum.",
    "entry_point": "Solution().twoSum",
    "test": "def check(candidate):\n    assert candidate(nums = [3, 3], target = 6) == [0, 1]",
    "input_output": [
        {"input": "nums = [3, 3], target = 6", "output": "[0, 1]"},
        {"input": "nums = [1], target = 6", "output": "Error: Execution timed out"},
    ],
}


def packed(cases: Any) -> str:
    """Tests as LiveCodeBench hides them."""
    return base64.b64encode(zlib.compress(pickle.dumps(cases))).decode()


def read(path: Path, row: dict[str, Any], column: str = "prompt") -> Prompt:
    path.write_text(json.dumps(row) + "\n")
    (prompt,) = read_prompts([path], PromptColumns(column))
    return prompt


def test_human_eval_and_mbpp_as_they_are(tmp_path: Path) -> None:
    prompt = read(tmp_path / "p.jsonl", HUMAN_EVAL)
    assert read_truth(prompt.ground_truth) == CheckTest(HUMAN_EVAL["test"], "f", "def f(x):\n")
    assert (prompt.prompt_id, prompt.ability, prompt.decoded) == ("HumanEval/0", "code", True)
    prompt = read(tmp_path / "p.jsonl", MBPP)
    assert read_truth(prompt.ground_truth) == AssertTests(["import math\nassert f(1) == 1", "assert f(2) == 2"])
    full = {**MBPP, "text": "Write f.", "test_setup_code": "import re", "test_imports": None}
    assert json.loads(str(read(tmp_path / "p.jsonl", full, "text").ground_truth))["setup"] == "import re"


def test_live_code_bench_with_its_private_tests(tmp_path: Path) -> None:
    private = packed(json.dumps([{"input": "4 5", "output": "9", "testtype": "stdin"}]))
    prompt = read(tmp_path / "p.jsonl", {**LIVE, "private_test_cases": private}, "question_content")
    assert read_truth(prompt.ground_truth) == StdinTests(["1 2", "4 5"], ["3", "9"])
    assert prompt.content == "Add two numbers."
    calls = {
        **LIVE,
        "public_test_cases": json.dumps([{"input": "1\n2", "output": "3"}]),
        "metadata": '{"func_name": "add"}',
        "starter_code": "class Solution:\n    def add(self, a, b):\n        ",
    }
    prompt = read(tmp_path / "p.jsonl", calls, "question_content")
    assert read_truth(prompt.ground_truth) == CallTests("add", [[1, 2]], [3], wrapped=False)
    assert prompt.content == "Add two numbers.\n\n```python\nclass Solution:\n    def add(self, a, b):\n```"


@pytest.mark.parametrize(
    ("private", "message"),
    [
        (packed(print), "holds builtins.print, and only a text is read from it"),
        (packed([1]), "holds list, not a text"),
        ("AAAA", "cannot be unpacked"),
        ("no base64!", "cannot be unpacked"),
        ('[{"input": 3}]', "a test has no input or no output"),
    ],
)
def test_private_tests_are_read_as_text_and_as_nothing_else(private: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"row 1: .*{message}"):
        read(tmp_path / "p.jsonl", {**LIVE, "private_test_cases": private}, "question_content")


def test_calls_of_leetcode(tmp_path: Path) -> None:
    prompt = read(tmp_path / "p.jsonl", LEET, "query")
    assert read_truth(prompt.ground_truth) == CallTests("twoSum", [[[3, 3], 6]], [[0, 1]], wrapped=False)
    with pytest.raises(InputError, match="tree_node or list_node"):
        read(tmp_path / "p.jsonl", {**LEET, "test": "assert candidate(root = tree_node([1]))"}, "query")


def test_an_answer_of_the_row_comes_before_columns_that_look_like_tests(tmp_path: Path) -> None:
    prompt = read(tmp_path / "p.jsonl", {**HUMAN_EVAL, "answer": "7"})
    assert (prompt.ground_truth, prompt.ability) == ("7", None)
