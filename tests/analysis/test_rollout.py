from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.analysis.rollout import Measure, Reader, sampled_differently, steps_of
from primecli.analysis.search import Location
from primecli.errors import InputError
from primecli.models.token_text import Piece
from primecli.pipeline.inputs import Inputs
from primecli.shards import schema
from tests.builders import rollout, write_shards


@pytest.mark.parametrize(
    ("texts", "separator", "ends"),
    [
        (["a", "\n", "\n", "b", "c\n", "d"], "\n", [3, 5, 6]),
        (["a", "\n", "\n", "b"], "\n\n", [3, 4]),  # a separator of two tokens
        (["a\n", "\nb"], "\n\n", [2]),  # its end is within a token, which ends the step
        (["\n", "a"], "\n", [1, 2]),
        (["a", "\n"], "\n", [2]),
        (["ab"], "nowhere", [1]),
        (["aXX", "XXb", "Xc"], "XX", [2, 3]),
        ([], "\n", []),
    ],
)
def test_where_steps_end(texts: list[str], separator: str, ends: list[int]) -> None:
    pieces = [Piece(text, 2 * index, 2 * index + 2) for index, text in enumerate(texts)]
    values = np.arange(2.0 * len(texts)) ** 2
    steps = steps_of(pieces, values, separator)
    assert [step.last for step in steps] == ends
    assert [step.first for step in steps] == [0, *ends][: len(ends)]
    for step in steps:
        assert step.total == values[2 * step.first : 2 * step.last].sum()
        assert step.cumulative == pytest.approx(values[: 2 * step.last].sum())


def location_of(directory: Path, **columns: Any) -> Location:
    row = rollout(0, 0, 1, **columns)
    (shard,) = Inputs([str(write_shards(directory, [row]))])
    return Location(shard, 0)


def test_lists_that_do_not_fit_the_response_are_named(tmp_path: Path) -> None:
    reader = Reader(Measure.process_rewards, separator="\n")
    with pytest.raises(InputError, match="process_rewards has 1 values for 2 response tokens at row 0"):
        reader.read(location_of(tmp_path / "a", **{schema.RESPONSE_IDS: [1, 2], schema.PROCESS_REWARDS: [1.0]}))
    with pytest.raises(InputError, match="process_rewards is not finite at row 0"):
        reader.read(location_of(tmp_path / "b", **{schema.RESPONSE_IDS: [1], schema.PROCESS_REWARDS: [float("inf")]}))
    with pytest.raises(InputError, match="response_ids is empty at row 0"):
        reader.read(location_of(tmp_path / "c", **{schema.RESPONSE_IDS: [], schema.PROCESS_REWARDS: []}))


def test_another_sampling_distribution_is_noticed() -> None:
    assert sampled_differently({schema.TOP_P: 1.0, schema.TOP_K: 0, schema.TEMPERATURE: 0.7}) is None
    assert sampled_differently({}) is None
    assert sampled_differently({schema.TOP_P: 0.9, schema.TOP_K: 50}) == "top_p 0.9, top_k 50"
    assert sampled_differently({schema.TEMPERATURE: 0.0}) == "temperature 0"
