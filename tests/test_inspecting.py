from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from primecli import schema
from primecli.errors import InputError
from primecli.inputs import Inputs
from primecli.inspecting import Wanted, find, piece_values, read_row, steps_of
from primecli.tokens import Piece
from tests.builders import rollouts, write_shards


def shards(directory: Path) -> Path:
    rows = rollouts(4, 4)
    for number, row in enumerate(rows):
        row[schema.PROCESS_REWARDS] = [float((number * 7) % 16 - 8)] * len(row[schema.RESPONSE_IDS])
    return write_shards(directory, rows, per_shard=8)


def found(directory: Path, wanted: Wanted = Wanted(), **options: object) -> list[tuple[str, int]]:  # noqa: B008
    places = find(Inputs([str(directory)]), wanted, **options)  # type: ignore[arg-type]
    return [(place.shard.name[9:14], place.row) for place in places]


def test_what_is_meant(tmp_path: Path) -> None:
    directory = shards(tmp_path / "a")
    assert found(directory)[:3] == [("00000", 0), ("00000", 1), ("00000", 2)]
    assert found(directory, Wanted(row=3)) == [("00000", 3), ("00001", 3)]
    assert found(directory, Wanted(group="p2")) == [("00001", row) for row in range(4)]
    right = found(directory, Wanted(verdict="correct"))
    assert len(right) == 8
    assert found(directory, Wanted(verdict="timeout")) == []


@pytest.mark.parametrize("ascending", [False, True])
def test_sorting(ascending: bool, tmp_path: Path) -> None:
    directory = shards(tmp_path / "a")
    keys = {"reward": [], "disagreement": [], "length": [], "outcome": []}  # type: dict[str, list[float]]
    for number, row in enumerate(rollouts(4, 4)):
        score = ((number * 7) % 16 - 8) * len(row[schema.RESPONSE_IDS])
        outcome = row[schema.OUTCOME_REWARD]
        for name, value in [
            ("reward", score),
            ("disagreement", -score if outcome else score),
            ("length", len(row[schema.RESPONSE_IDS])),
            ("outcome", outcome),
        ]:
            keys[name].append(value)
    for name, values in keys.items():
        order = sorted(range(16), key=lambda number: values[number] if ascending else -values[number])
        expected = [(f"{number // 8:05d}", number % 8) for number in order]
        assert found(directory, sort=name, ascending=ascending) == expected, name


def test_a_row_is_read_by_its_row_group(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    directory = shards(tmp_path / "a")
    path = directory / "rollouts-00000-of-00002.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=3)
    (shard,) = Inputs([str(path)])
    for row in range(8):
        assert read_row(shard, row) == table.slice(row, 1).to_pylist()[0]
    with pytest.raises(InputError, match="has 8 rows; there is no row 8"):
        read_row(shard, 8)


def test_steps_and_their_sums() -> None:
    texts = ["a", "\n", "\n", "b", "c\n", "d"]
    pieces = [Piece(text, 2 * place, 2 * place + 2) for place, text in enumerate(texts)]
    values = np.arange(12.0)
    steps = steps_of(pieces, values, "\n")
    assert [(step.first, step.last) for step in steps] == [(0, 3), (3, 5), (5, 6)]
    assert [step.total for step in steps] == [15, 30, 21]
    assert [step.cumulative for step in steps] == [15, 45, 66]
    assert piece_values(pieces, values).tolist() == [1, 5, 9, 13, 17, 21]
    assert len(steps_of(pieces, values, "nowhere")) == 1
