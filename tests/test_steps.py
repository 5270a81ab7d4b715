from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from primecli.errors import InputError, UsageError
from primecli.steps import step_ends, token_texts

TEXTS = {0: "a", 1: "\n", 2: "b\n", 3: "\n\nc", 4: "<eos>", 5: "\ufffd"}


@pytest.mark.parametrize(
    ("ids", "separator", "expected"),
    [
        ([0, 1, 0, 4], "\n", [0, 1, 0, 1]),
        ([0, 1, 1, 0], "\n", [0, 0, 1, 1]),  # separators in a row end one step
        ([2, 0, 2], "\n", [1, 0, 1]),
        ([0, 3, 0], "\n\n", [0, 1, 1]),  # the token in which it ends, though that has more
        ([0, 1, 1, 0], "\n\n", [0, 0, 1, 1]),  # across two tokens
        ([0, 1, 0, 0], "\n\n", [0, 0, 0, 1]),
        ([2, 1, 0], "\n\n", [0, 1, 1]),
        ([0], "\n", [1]),
        ([5, 1, 5], "\n", [0, 1, 1]),
    ],
)
def test_where_steps_end(ids: list[int], separator: str, expected: list[int]) -> None:
    assert step_ends([np.array(ids)], TEXTS, separator).tolist() == [bool(place) for place in expected]


def test_rows_are_apart() -> None:
    rows = [np.array([0, 1]), np.array([1, 0])]
    assert step_ends(rows, TEXTS, "\n\n").tolist() == [False, True, False, True]


def test_texts_are_the_tokenizers_own(tiny: Path) -> None:
    texts = token_texts(tiny, np.array([256, 256]))
    assert texts == {256: "<eos>"}
    with pytest.raises(InputError, match="has no token 999"):
        token_texts(tiny, np.array([999]))
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        token_texts(tiny.parent, np.array([1]))


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(UsageError, match="--step-separator is empty"):
        step_ends([np.array([0])], TEXTS, "")
