from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli.errors import InputError
from primecli.shards import schema
from primecli.shards.columns import flat_column, list_column
from primecli.shards.streaming import read_row, stream
from tests.builders import rollouts, write_shards


def shard(directory: Path, row_group_size: int = 3) -> tuple[Path, pa.Table]:
    """Ten rows in row groups of three."""
    (path,) = write_shards(directory, rollouts(5, 2)).glob("*.parquet")
    table = pq.ParquetFile(path).read()
    pq.write_table(table, path, row_group_size=row_group_size)
    return path, table


@pytest.mark.parametrize("rows", [1, 2, 4, 100])
def test_a_stream_is_the_table(rows: int, tmp_path: Path) -> None:
    path, table = shard(tmp_path / "a")
    names = [schema.VERDICT, schema.RESPONSE_IDS, schema.GROUP_ID]
    parts = list(stream(path, names, rows=rows))
    assert [first for first, _ in parts] == [sum(len(part) for _, part in parts[:index]) for index in range(len(parts))]
    assert max(len(part) for _, part in parts) <= rows
    whole = pa.concat_tables([part for _, part in parts])
    assert whole.column_names == names
    assert whole.to_pylist() == table.select(names).to_pylist()
    assert next(stream(path, None))[1].column_names == table.column_names


@pytest.mark.parametrize("row_group_size", [1, 3, 10])
def test_any_row_comes_alone(row_group_size: int, tmp_path: Path) -> None:
    path, table = shard(tmp_path / "a", row_group_size)
    for row in range(10):
        assert read_row(path, row) == table.slice(row, 1).to_pylist()[0]
    assert read_row(path, 4, [schema.ROLLOUT_LOGPROBS]) == table.select(["rollout_logprobs"]).slice(4, 1).to_pylist()[0]
    for row in (-1, 10):
        with pytest.raises(InputError, match=f"has 10 rows; there is no row {row}"):
            read_row(path, row)


def test_lists_of_a_part_are_its_own(tmp_path: Path) -> None:
    path, table = shard(tmp_path / "a")
    parts = [flat_column(part, schema.RESPONSE_IDS)[0] for _, part in stream(path, [schema.RESPONSE_IDS], rows=2)]
    assert np.concatenate(parts).tolist() == flat_column(table, schema.RESPONSE_IDS)[0].tolist()


def test_what_does_not_fit_is_named_with_its_row(tmp_path: Path) -> None:
    path, table = shard(tmp_path / "a")
    index = table.column_names.index(schema.PROMPT)
    texts = pa.array([None if row == 7 else "p" for row in range(10)])
    pq.write_table(table.set_column(index, schema.PROMPT, texts), path)
    with pytest.raises(InputError, match="prompt is null at row 7"):
        list(stream(path, [schema.PROMPT], rows=2))
    with pytest.raises(InputError, match="prompt is null at row 7"):
        read_row(path, 7)
    with pytest.raises(InputError, match=r"lacks the column advantages .made by `primecli compute-advantages`"):
        list(stream(path, [schema.ADVANTAGES]))
    damaged = path.read_bytes()
    path.write_bytes(damaged[:200] + b"\x00" * 400 + damaged[600:])
    with pytest.raises(InputError, match="truncated or damaged"):
        list(stream(path, None))


def test_a_row_group_is_not_held_whole(tmp_path: Path) -> None:
    """As another tool may write it: all rows in one row group. Arrow's allocator counts what the reader holds."""
    import os

    rows, tokens = 20_000, 100
    values = np.frombuffer(os.urandom(4 * rows * tokens), dtype=np.uint32) / np.float32(2**32)
    lists = list_column(values.astype(np.float32), np.full(rows, tokens), schema.ADVANTAGES)
    pq.write_table(pa.table({schema.ADVANTAGES: lists}), tmp_path / "a.parquet", row_group_size=rows)
    del lists
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in stream(tmp_path / "a.parquet", None, rows=500)]
    assert len(held) == 40
    assert max(held) < (tmp_path / "a.parquet").stat().st_size / 2
