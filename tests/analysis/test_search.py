from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primecli.analysis.search import Criteria, Location, Sort, find, find_pairs
from primecli.pipeline.inputs import Inputs
from primecli.shards import schema
from tests.builders import rollouts, write_shards

PER_SHARD = 8
ANY = Criteria()


def rows() -> list[dict[str, Any]]:
    """Four groups of four with rewards of both signs; row 5 is ungraded."""
    made = rollouts(4, 4)
    for index, row in enumerate(made):
        length = len(row[schema.RESPONSE_IDS])
        row[schema.PROCESS_REWARDS] = [float((index * 7 + 3 * token) % 16 - 8) for token in range(length)]
    made[5][schema.OUTCOME_REWARD], made[5][schema.VERDICT] = None, "error"
    return made


def index_of(location: Location) -> int:
    """The index in `rows`, from a shard named like rollouts-00001-of-00002.parquet."""
    return PER_SHARD * int(location.shard.name[9:14]) + location.row


def find_rows(directory: Path, criteria: Criteria = ANY, **options: Any) -> list[int]:
    return [index_of(location) for location in find(Inputs([str(directory)]), criteria, **options)]


def test_criteria(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "a", rows(), per_shard=PER_SHARD)
    assert find_rows(directory) == list(range(16))
    assert find_rows(directory, Criteria(row=3)) == [3, 11]
    assert find_rows(directory, Criteria(row=8)) == []
    assert find_rows(directory, Criteria(group="p2")) == [8, 9, 10, 11]
    assert find_rows(directory, Criteria(row=1, group="p2")) == [9]
    correct = [index for index, row in enumerate(rows()) if row[schema.VERDICT] == "correct"]
    assert find_rows(directory, Criteria(verdict="correct")) == correct
    assert find_rows(directory, Criteria(verdict="timeout"), sort=Sort.length) == []


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("sort", list(Sort))
def test_sorting(sort: Sort, ascending: bool, tmp_path: Path) -> None:
    def key(row: dict[str, Any]) -> float | None:
        rewards, outcome = row[schema.PROCESS_REWARDS], row[schema.OUTCOME_REWARD]
        keys: dict[Sort, float | None] = {
            Sort.reward: sum(rewards),
            Sort.lowest_token: -min(rewards),
            Sort.length: len(rewards),
            Sort.outcome: outcome,
            Sort.disagreement: None if outcome is None else -sum(rewards) if outcome else sum(rewards),
        }
        return keys[sort]

    keys = [key(row) for row in rows()]
    known = [index for index, value in enumerate(keys) if value is not None]
    expected = sorted(known, key=lambda index: (keys[index] or 0.0) * (1 if ascending else -1))
    expected += [index for index, value in enumerate(keys) if value is None]
    directory = write_shards(tmp_path / "a", rows(), per_shard=PER_SHARD)
    assert find_rows(directory, sort=sort, ascending=ascending) == expected


def test_pairs(tmp_path: Path) -> None:
    directory = write_shards(tmp_path / "a", rows(), per_shard=PER_SHARD)

    def pairs(**options: Any) -> list[tuple[int, int]]:
        pairs = find_pairs(Inputs([str(directory)]), ANY, **options)
        return [(index_of(right), index_of(wrong)) for right, wrong in pairs]

    outcomes = [row[schema.OUTCOME_REWARD] for row in rows()]
    groups = [range(start, start + 4) for start in range(0, 16, 4)]

    def first(order: list[int], group: range, outcome: float) -> int:
        return next(row for row in order if row in group and outcomes[row] == outcome)

    in_order = list(range(16))
    assert pairs() == [(first(in_order, group, 1), first(in_order, group, 0)) for group in groups]
    by_disagreement = [row for row in find_rows(directory, sort=Sort.disagreement) if outcomes[row] is not None]
    found = pairs(sort=Sort.disagreement)
    assert set(found) == {(first(by_disagreement, group, 1), first(by_disagreement, group, 0)) for group in groups}
    completed_at = [max(by_disagreement.index(row) for row in pair) for pair in found]
    assert completed_at == sorted(completed_at)


def test_groups_of_two_directories_are_distinct(tmp_path: Path) -> None:
    right, wrong = (rollouts(1, 1, **{schema.OUTCOME_REWARD: outcome}) for outcome in (1.0, 0.0))
    paths = [str(write_shards(tmp_path / name, made)) for name, made in (("a", right), ("b", wrong))]
    assert list(find_pairs(Inputs(paths, together=True), ANY)) == []
