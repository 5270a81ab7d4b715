"""Reads the tests in the ground truth of a programming problem, which is JSON in one of three forms.

| form | keys | one test is |
|---|---|---|
| PRIME, Eurus, APPS, TACO | inputs, outputs, and fn_name for calls | one input with its output |
| HumanEval | test, entry_point, and prompt where it defines what the tests use | `check(entry_point)` |
| MBPP | asserts, and setup for statements before them | one assert |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class DataError(Exception):
    """No program can be graded with this ground truth."""


@dataclass(frozen=True, slots=True)
class StdinTests:
    """Programs that read stdin and write stdout.

    inputs: the text on stdin, for each test.
    outputs: the stdout that is expected.
    """

    inputs: list[str]
    outputs: list[str]


@dataclass(frozen=True, slots=True)
class CallTests:
    """Calls of a function; all values are JSON.

    name: of the function, or of a method of the class Solution.
    arguments: the positional arguments, for each test.
    outputs: the value that is expected.
    wrapped: whether every output is a list of one item. Some data sets wrap each output so, and the data do not tell
        which: both the list and its item are then right.
    """

    name: str
    arguments: list[list[Any]]
    outputs: list[Any]
    wrapped: bool


@dataclass(frozen=True, slots=True)
class CheckTest:
    """HumanEval.

    test: code that defines `check`, whose argument is the function.
    entry_point: the name of the function.
    prompt: the code that the response completes; the tests may use what it defines. None where the data have none.
    """

    test: str
    entry_point: str
    prompt: str | None


@dataclass(frozen=True, slots=True)
class AssertTests:
    """MBPP.

    asserts: statements, each one a test.
    """

    asserts: list[str]


Truth = StdinTests | CallTests | CheckTest | AssertTests


def read_truth(ground_truth: str | None) -> Truth:
    """The tests in a ground truth.

    >>> read_truth('{"asserts": ["assert f(1) == 2"]}')
    AssertTests(asserts=['assert f(1) == 2'])

    Raises DataError.
    """
    if ground_truth is None or not ground_truth.strip():
        raise DataError("no ground truth")
    try:
        truth = json.loads(ground_truth)
        truth = json.loads(truth) if isinstance(truth, str) else truth
    except (ValueError, RecursionError) as error:
        raise DataError(f"the ground truth is not JSON: {error}"[:200]) from None
    if not isinstance(truth, dict):
        raise DataError("the ground truth is not a JSON object")
    if "inputs" in truth and "outputs" in truth:
        return _in_out(truth)
    if "test" in truth and "entry_point" in truth:
        prompt = truth.get("prompt")
        if not (isinstance(truth["test"], str) and isinstance(truth["entry_point"], str)):
            raise DataError("test and entry_point are not texts")
        return CheckTest(truth["test"], truth["entry_point"], prompt if isinstance(prompt, str) else None)
    if "asserts" in truth:
        return _asserts(truth)
    raise DataError("the ground truth has neither inputs and outputs, nor test and entry_point, nor asserts")


def _asserts(truth: dict[str, Any]) -> AssertTests:
    asserts, setup = truth["asserts"], truth.get("setup") or ""
    if not isinstance(asserts, list) or not asserts or not all(isinstance(item, str) for item in asserts):
        raise DataError("asserts is not a list of texts, or empty")
    if not isinstance(setup, str):
        raise DataError("setup is not a text")
    return AssertTests([f"{setup}\n{asserts[0]}" if setup.strip() else asserts[0], *asserts[1:]])


def _in_out(truth: dict[str, Any]) -> StdinTests | CallTests:
    inputs, outputs, name = truth["inputs"], truth["outputs"], truth.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise DataError("inputs and outputs are not lists")
    if not inputs or len(inputs) != len(outputs):
        raise DataError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    if not name:
        return StdinTests([_text(item) for item in inputs], [_text(item) for item in outputs])
    if not isinstance(name, str):
        raise DataError("fn_name is not a text")
    if all(isinstance(item, str) for item in inputs):
        lines = [_json_lines(item) for item in inputs]
        if all(line is not None for line in lines):
            inputs = lines
            outputs = [_json(item) for item in outputs]
    wrapped = all(isinstance(item, list) and len(item) == 1 for item in outputs)
    return CallTests(name, [_arguments(item) for item in inputs], outputs, wrapped)


def _text(item: Any) -> str:
    if isinstance(item, list):
        return "\n".join(map(_text, item))
    if isinstance(item, str):
        return item
    if isinstance(item, (int, float)):
        return str(item)
    raise DataError(f"an input or output is {type(item).__name__}, not a text")


def _json(item: Any) -> Any:
    try:
        return json.loads(item) if isinstance(item, str) else item
    except ValueError:
        return item


def _json_lines(item: str) -> list[Any] | None:
    """The arguments in a text with one on each line, as LiveCodeBench has them; None for other texts."""
    try:
        return [json.loads(line) for line in item.split("\n") if line.strip()]
    except ValueError:
        return None


def _arguments(item: Any) -> list[Any]:
    """The arguments of a call. Where the only one is a dictionary, JSON made its keys texts: numbers are restored."""
    if not isinstance(item, list):
        return [item]
    if len(item) == 1 and isinstance(item[0], dict) and item[0]:
        keys = list(item[0])
        if all(key.lstrip("-").isdecimal() for key in keys):
            return [{int(key): value for key, value in item[0].items()}]
    return item
