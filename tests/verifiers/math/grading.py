"""What the tests of this folder share: data sets, and the grade of an answer in a box."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from primecli.verifiers import Grade, Task, load_verifier
from tests.conftest import DATA


def grade_in_box(gold: str, answer: str) -> Grade:
    """The grade of a response that ends in this answer."""
    return load_verifier("math").grade(Task(f"so it is $\\boxed{{{answer}}}$.", gold))


def data_rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file of the data sets; skips the test where there is none."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; PRIMECLI_DATA names another directory")
    with path.open() as lines:
        yield from map(json.loads, lines)
