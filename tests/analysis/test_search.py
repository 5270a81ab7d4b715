from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primecli.analysis.search import Criteria, Sort, find, find_pairs
from primecli.pipeline.inputs import Inputs
from primecli.shards import schema
from tests.builders import rollouts, write_shards


def rows() -> list[dict[str, Any]]:
    made = rollouts(4, 4)
    for number, row in enumerate(made):
        length = len(row[schema.RESPONSE_IDS])
        row[schema.PROCESS_REWARDS] = [float((number * 7 + 3 * place) % 16 - 8) for place in range(length)]
    made[5][schema.OUTCOME_REWARD], made[5][schema.VERDICT] = None, "error"
    return made


def found(directory: Path, criteria: Criteria = Criteria(), **options: Any) -> list[int]:  # noqa: B008
    """Numbers of the rows, over both shards."""
    places = find(Inputs([str(directory)]), criteria, **options)
    return [8 * int(place.shard.name[9:14]) + place.row for place in places]


def test_what_is_meant(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "a", rows(), per_shard=8)
    assert found(directory) == list(range(16))
    assert found(directory, Criteria(row=3)) == [3, 11]
    assert found(directory, Criteria(row=8)) == []
    assert found(directory, Criteria(group="p2")) == [8, 9, 10, 11]
    assert found(directory, Criteria(row=1, group="p2")) == [9]
    expected = [number for number, row in enumerate(rows()) if row[schema.VERDICT] == "correct"]
    assert found(directory, Criteria(verdict="correct")) == expected
    assert found(directory, Criteria(verdict="timeout"), sort=Sort.length) == []


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("sort", list(Sort))
def test_sorting(sort: Sort, ascending: bool, tmp_path: Path) -> None:
    def key(row: dict[str, Any]) -> float | None:
        rewards, outcome = row[schema.PROCESS_REWARDS], row[schema.OUTCOME_REWARD]
        values: dict[str, float | None] = {"reward": sum(rewards), "lowest-token": -min(rewards), "outcome": outcome}
        against = None if outcome is None else -sum(rewards) if outcome else sum(rewards)
        return {**values, "length": len(rewards), "disagreement": against}[sort]

    keys = [key(row) for row in rows()]
    known = [number for number, value in enumerate(keys) if value is not None]
    order = sorted(known, key=lambda number: (keys[number] or 0.0) * (1 if ascending else -1))
    missing = [number for number, value in enumerate(keys) if value is None]
    assert found(write_shards(tmp_path / "a", rows(), per_shard=8), sort=sort, ascending=ascending) == order + missing


def test_pairs(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "a", rows(), per_shard=8)

    def pairs(**options: Any) -> list[tuple[int, int]]:
        places = find_pairs(Inputs([str(directory)]), Criteria(), **options)
        return [tuple(8 * int(one.shard.name[9:14]) + one.row for one in pair) for pair in places]  # type: ignore[misc]

    outcomes = [row[schema.OUTCOME_REWARD] for row in rows()]
    order = [pair for group in range(4) for pair in [range(4 * group, 4 * group + 4)]]
    expected = [
        (next(row for row in group if outcomes[row] == 1), next(row for row in group if outcomes[row] == 0))
        for group in order
    ]
    assert pairs() == expected
    by_score = [row for row in found(directory, sort=Sort.disagreement) if outcomes[row] is not None]
    ranked = pairs(sort=Sort.disagreement)
    for group in order:  # of each group the right and the wrong one that disagree most
        (pair,) = [pair for pair in ranked if pair[0] in group]
        assert pair[0] == next(row for row in by_score if row in group and outcomes[row] == 1)
        assert pair[1] == next(row for row in by_score if row in group and outcomes[row] == 0)
    positions = [max(by_score.index(row) for row in pair) for pair in ranked]
    assert positions == sorted(positions)


def test_groups_of_two_directories_are_apart(tmp_path: Path) -> None:
    right, wrong = (rollouts(1, 1, **{schema.OUTCOME_REWARD: outcome}) for outcome in (1.0, 0.0))
    places = [str(write_shards(tmp_path / name, made)) for name, made in (("a", right), ("b", wrong))]
    assert list(find_pairs(Inputs(places, together=True), Criteria())) == []
