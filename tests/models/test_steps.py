from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from primecli.errors import InputError, UsageError
from primecli.models.steps import StepFinder, last_of_steps
from primecli.models.token_text import Speller, Spellers
from primecli.shards.parquet import Shard, read_footer, read_table
from tests.builders import rollouts, write_shards

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


def test_characters_of_several_tokens_move_no_step(tiny: Path) -> None:
    """€ takes three tokens, and is part of a separator too."""
    speller = Speller(tiny)
    texts = speller.known_texts(speller.tokenizer.encode("€€\n€").ids)
    assert last_of_steps(texts, "\n").tolist() == [False] * 6 + [True, False, False, True]
    assert last_of_steps(texts, "€\n").tolist() == [False] * 6 + [True, False, False, True]
    assert last_of_steps(texts, "€").tolist() == [False] * 5 + [True] + [False] * 3 + [True]


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(UsageError, match="--step-separator is empty"):
        last_of_steps(spell([0]), "")


def test_steps_that_the_shard_gives_come_before_the_separator(tiny: Path, tmp_path: Path) -> None:
    ids = Speller(tiny).tokenizer.encode("a\nb\nc").ids
    rows = rollouts(1, 2, response_ids=ids, rollout_logprobs=[0.0] * 5)
    rows[0]["step_ends"] = [2, 4]
    rows[1]["step_ends"] = None
    (path,) = write_shards(tmp_path / "in", rows).glob("*.parquet")
    shard = Shard(path, read_footer(path))
    table = read_table(path, ["response_ids", "step_ends"])
    finder = StepFinder("\n", Spellers(str(tiny)), "--select min")
    assert [ends.tolist() for ends in finder.ends(table, shard)] == [[2, 4], [1, 3, 4]]
    nowhere = StepFinder("\n", Spellers(), "--select min")
    with pytest.raises(InputError, match="--select min needs the tokenizer"):
        nowhere.ends(table, shard)
    assert [ends.tolist() for ends in nowhere.ends(table.slice(0, 1), shard)] == [[2, 4]]
