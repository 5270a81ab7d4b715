from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.analysis.responses import BATCH_ROWS, Responses, collect, degenerate, longest_runs, repeated_ngrams
from primecli.errors import InputError
from primecli.pipeline.inputs import Inputs
from primecli.shards import schema
from tests.builders import rollouts, write_shards


def scored(groups: int, size: int, **columns: Any) -> list[dict[str, Any]]:
    rows = rollouts(groups, size, **columns)
    for number, row in enumerate(rows):
        row[schema.PROCESS_REWARDS] = [0.5 + number] * len(row[schema.RESPONSE_IDS])
    return rows


def read(directory: Path) -> Responses:
    return collect(Inputs([str(directory)]))


def test_responses_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = scored(BATCH_ROWS // 2 + 9, 4)  # some batches in a shard, some shards
    per_shard = 4 * (BATCH_ROWS // 4 + 9)
    found = read(write_shards(tmp_path / "a", rows, per_shard=per_shard))
    assert len(found) == len(rows)
    for number, row in enumerate(rows):
        assert found.scores[number] == pytest.approx(sum(row[schema.PROCESS_REWARDS]), rel=1e-6)
        assert found.lengths[number] == len(row[schema.RESPONSE_IDS])
        assert found.outcomes[number] == row[schema.OUTCOME_REWARD]
        assert found.group_ids[found.group[number]] == row[schema.GROUP_ID]
        assert (found.shard[number], found.row[number]) == divmod(number, per_shard)
    assert [part.name for part in found.shards] == sorted(path.name for path in (tmp_path / "a").iterdir())


def test_copies_are_counted_within_groups_over_batches(tmp_path: Path) -> None:
    size = BATCH_ROWS + 4  # the group does not fit a batch
    rows = scored(2, size, response_ids=[1, 2, 3])
    for row in rows:
        row[schema.PROCESS_REWARDS] = [0.1] * 3
    rows[1][schema.RESPONSE_IDS] = [3, 2, 1]
    rows[size - 1][schema.OUTCOME_REWARD] = None  # left out, and no copy of another
    found = read(write_shards(tmp_path / "a", rows))
    assert found.ungraded == 1
    assert found.copies().tolist() == [size - 2, 1, *[size - 2] * (size - 3), *[size] * size]


def broken(row: int, **columns: Any) -> list[dict[str, Any]]:
    rows = scored(BATCH_ROWS // 2, 4)
    rows[row].update(columns)
    return rows


LATE = BATCH_ROWS + 3  # a row of the second batch
NAN = [float("nan")] * len(broken(LATE)[LATE][schema.RESPONSE_IDS])
WRONG = {
    "nan": (broken(LATE, process_rewards=NAN), f"process_rewards is nan at row {LATE}"),
    "short": (broken(LATE, process_rewards=[0.0]), f"process_rewards has 1 values for .* at row {LATE}"),
    "outcome": (broken(LATE, outcome_reward=7.0), f"outcome_reward is 7 at row {LATE}"),
    "incomplete": (scored(3, 4)[1:], "group p0@0 is incomplete: it has 3 of 4 samples"),
    "ungraded": (scored(3, 4, outcome_reward=None), "no response has an outcome reward .*primecli verify"),
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_input_is_an_error_that_says_where(name: str, tmp_path: Path) -> None:
    rows, message = WRONG[name]
    write_shards(tmp_path / "a", rows)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a")


def test_a_null_list_is_reported_with_its_row_in_the_shard(tmp_path: Path) -> None:
    rows = broken(LATE, process_rewards=None)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")  # of another tool, which allows nulls
    with pytest.raises(InputError, match=f"column process_rewards is null at row {LATE}"):
        read(tmp_path)


def test_a_group_in_two_shards_is_an_error(tmp_path: Path) -> None:
    rows = scored(2, 2)
    for row in rows:
        row[schema.GROUP_ID] = "same"
    write_shards(tmp_path / "a", rows, per_shard=2)
    with pytest.raises(InputError, match="group same is in two shards"):
        read(tmp_path / "a")


responses = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=5)


@settings(deadline=None, max_examples=100)
@given(responses, st.integers(1, 4))
def test_ngrams_are_looked_up_in_their_own_response_only(rows: list[list[int]], size: int) -> None:
    before, place = repeated_ngrams(np.concatenate(rows), np.array([len(row) for row in rows]), size)
    expected = []
    for number, row in enumerate(rows):
        seen: set[tuple[int, ...]] = set()
        for start in range(len(row) - size + 1):
            gram = tuple(row[start : start + size])
            expected.append((number, gram in seen))
            seen.add(gram)
    assert list(zip(place.tolist(), before.tolist(), strict=True)) == expected
    grams = np.flatnonzero(before)
    runs = longest_runs(place[grams], grams, len(rows))
    for number in range(len(rows)):
        flags = "".join("x" if flag else "." for at, flag in expected if at == number)
        assert runs[number] == max(map(len, flags.split(".")))


def flags(*rows: list[int]) -> list[bool]:
    return list(degenerate(np.concatenate(rows), np.array([len(row) for row in rows])).tolist())


def test_degenerate_responses() -> None:
    generator = np.random.default_rng(0)
    fresh = generator.permutation(1000).tolist()
    looped = [*fresh[:99], *[4, 5, 6] * 40]  # fine up to its middle
    twice = [*fresh[:60], *fresh[60:70], *fresh[70:120], *fresh[60:70]]  # quotes ten tokens
    assert flags(fresh, looped, twice, [7] * 100, [151935, 151934] * 50) == [False, True, False, True, True]
    assert flags([1], [1, 2, 3], [7] * 29, [7] * 3) == [False, False, True, False]
    assert flags([*fresh[:500], *[9] * 30], [*fresh[:500], *[9] * 29]) == [True, False]
    much = [*fresh[:16], *(token for start in range(12) for token in [500 + start, *fresh[start : start + 5]] * 7)]
    assert flags(much) == [True]  # no long stretch, but little that is new
