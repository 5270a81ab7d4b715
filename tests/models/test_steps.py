from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from primecli.errors import UsageError
from primecli.models.steps import last_of_steps, step_ends
from primecli.models.token_text import Speller

TEXTS = {0: "a", 1: "\n", 2: "b\n", 3: "\n\nc", 4: "<eos>", 5: "\ufffd"}


def spell(ids: Sequence[int]) -> list[str]:
    return [TEXTS[token] for token in ids]


@pytest.mark.parametrize(
    ("ids", "separator", "expected"),
    [
        ([0, 1, 0, 4], "\n", [0, 1, 0, 1]),
        ([0, 1, 1, 0], "\n", [0, 0, 1, 1]),  # several separators in a row end one step
        ([2, 0, 2], "\n", [1, 0, 1]),
        ([0, 3, 0], "\n\n", [0, 1, 1]),  # the token in which the separator ends, though it goes further
        ([0, 1, 1, 0], "\n\n", [0, 0, 1, 1]),  # a separator across two tokens
        ([0, 1, 0, 0], "\n\n", [0, 0, 0, 1]),
        ([2, 1, 0], "\n\n", [0, 1, 1]),
        ([0], "\n", [1]),
        ([5, 1, 5], "\n", [0, 1, 1]),
    ],
)
def test_where_steps_end(ids: list[int], separator: str, expected: list[int]) -> None:
    assert last_of_steps(spell(ids), separator).tolist() == [bool(end) for end in expected]


def test_rows_are_apart() -> None:
    assert step_ends([[0, 1], [1, 0]], spell, "\n\n").tolist() == [False, True, False, True]


def test_characters_of_several_tokens_move_no_step(tiny: Path) -> None:
    """€ takes three tokens, and is part of a separator too."""
    speller = Speller(tiny)
    ids = speller.tokenizer.encode("€€\n€").ids
    assert step_ends([ids], speller.known_texts, "\n").tolist() == [False] * 6 + [True, False, False, True]
    assert step_ends([ids], speller.known_texts, "€\n").tolist() == [False] * 6 + [True, False, False, True]
    assert step_ends([ids], speller.known_texts, "€").tolist() == [False] * 5 + [True] + [False] * 3 + [True]


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(UsageError, match="--step-separator is empty"):
        step_ends([[0]], spell, "")
