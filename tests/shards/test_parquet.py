from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli.errors import InputError
from primecli.shards import parquet, schema


def table(**columns: Any) -> pa.Table:
    rows = {"group_id": ["a", "a", "b", "b"], "sample_index": [0, 1, 0, 1], "group_size": [2, 2, 2, 2], **columns}
    return pa.table({name: pa.array(values, schema.BY_NAME[name].arrow_type()) for name, values in rows.items()})


def write(path: Path, rows: pa.Table, **footer: Any) -> Path:
    parquet.write_shard(path, rows, **{"fingerprint": "f", "recipe": {}, "counts": {}, "provenance": [], **footer})
    return path


def test_the_footer_comes_back(tmp_path: Path) -> None:
    chain = [{"stage": "generate", "seconds": 1.5}, {"stage": "verify"}]
    path = write(tmp_path / "s.parquet", table(), recipe={"config": {"n": 2}}, counts={"groups": 2}, provenance=chain)
    footer = parquet.read_footer(path)
    assert (footer.rows, footer.fingerprint, footer.recipe) == (4, "f", {"config": {"n": 2}})
    assert list(footer.provenance) == chain
    assert footer.counts == {"groups": 2}


def test_content_is_that_of_the_rows_alone(tmp_path: Path) -> None:
    first = parquet.read_footer(write(tmp_path / "1.parquet", table(), provenance=[{"seconds": 1}], fingerprint="x"))
    second = parquet.read_footer(write(tmp_path / "2.parquet", table(), provenance=[{"seconds": 2}], fingerprint="y"))
    third = parquet.read_footer(write(tmp_path / "3.parquet", table(sample_index=[1, 0, 0, 1])))
    assert first.content == second.content != third.content


def test_another_tools_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "1.parquet")
    pq.write_table(table(sample_index=[1, 0, 0, 1]), tmp_path / "2.parquet")
    first, second = (parquet.read_footer(tmp_path / f"{number}.parquet") for number in (1, 2))
    assert first.fingerprint is None
    assert first.content != second.content


def test_duckdb_reads_the_footer_and_the_rows(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    write(tmp_path / parquet.shard_name(0, 1), table(), provenance=[{"stage": "generate"}])
    found = duckdb.sql(f"select decode(value) from parquet_kv_metadata('{tmp_path}/*.parquet') where key = 'primecli'")
    assert '"stage": "generate"' in found.fetchall()[0][0]
    assert duckdb.sql(f"select count(*) from '{tmp_path}/rollouts-*.parquet'").fetchall() == [(4,)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"hello, world", "not a Parquet file"),
        (b"PAR1 and then nothing more", "a truncated or damaged Parquet file"),
    ],
)
def test_what_is_not_a_shard_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: {message}"):
        parquet.read_footer(path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet", table())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated or damaged"):
        parquet.read_table(path)


def test_missing_columns_say_who_makes_them(tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet", table())
    with pytest.raises(InputError, match=r"lacks the column process_rewards .made by `primecli score-prm`"):
        parquet.read_table(path, ["group_id", "process_rewards"])


def test_nulls_and_types_are_checked(tmp_path: Path) -> None:
    pq.write_table(table(group_id=["a", None, "b", "b"]), tmp_path / "null.parquet")
    with pytest.raises(InputError, match="column group_id is null at row 1"):
        parquet.read_table(tmp_path / "null.parquet")
    pq.write_table(pa.table({"sample_index": [[1], [2]]}), tmp_path / "type.parquet")
    with pytest.raises(InputError, match=r"sample_index is list<.*> instead of int32"):
        parquet.read_table(tmp_path / "type.parquet")


def last_page_byte(path: Path) -> int:
    group = pq.read_metadata(path).row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    return max(int(start) + int(chunk.total_compressed_size) for start, chunk in zip(starts, chunks, strict=True))


@pytest.mark.parametrize("verify", [False, True])
def test_no_flipped_bit_is_read_as_another_value(tmp_path: Path, verify: bool) -> None:
    rows = table(prompt=["one", "two", "three", "four"], response_ids=[[1, 2], [3], [4, 5, 6], [7]])
    path = write(tmp_path / "s.parquet", rows)
    good, whole = path.read_bytes(), parquet.conform(rows, path)
    outcomes = {"refused": 0, "same": 0, "other": 0}
    for position in np.linspace(4 * 8, 8 * last_page_byte(path) - 1, 200).astype(int):
        damaged = bytearray(good)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            outcomes["same" if parquet.read_table(path, verify=verify).equals(whole) else "other"] += 1
        except InputError:
            outcomes["refused"] += 1
    # without the hash, a bit of a page's header that no reader uses is not noticed
    assert outcomes == {"refused": 200, "same": 0, "other": 0} if verify else outcomes["other"] == 0, outcomes


def test_a_shard_that_is_replaced_between_its_footer_and_its_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet", table(), provenance=[{"stage": "generate", "seconds": 1}])
    footer = parquet.read_footer(path)
    write(path, table(), provenance=[{"stage": "generate", "seconds": 2}])  # made again, the same rows
    assert parquet.read_table(path, expected=footer).num_rows == 4
    write(path, table(sample_index=[1, 0, 0, 1]))
    with pytest.raises(InputError, match="has been replaced by other rows"):
        parquet.read_table(path, expected=footer)
    pq.write_table(table(), path)
    other_tools = parquet.read_footer(path)
    pq.write_table(table(group_id=["a", "a", "c", "c"]), path)
    with pytest.raises(InputError, match="has been replaced by other rows"):
        parquet.read_table(path, ["group_id"], expected=other_tools)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    pq.write_table(table(outcome_reward=[None, 1.0, value, 0.0]), tmp_path / "s.parquet")
    with pytest.raises(InputError, match=f"outcome_reward is {value} at row 2"):
        parquet.read_table(tmp_path / "s.parquet")
    pq.write_table(table(outcome_reward=[None, 1.0, 0.5, 0.0]), tmp_path / "s.parquet")
    assert parquet.read_table(tmp_path / "s.parquet")["outcome_reward"].null_count == 1


def test_a_lack_of_memory_is_not_taken_for_a_damaged_shard(tmp_path: Path) -> None:
    path = tmp_path / "rollouts-00000-of-00001.parquet"
    path.write_bytes(b"PAR1")
    for error in (pa.ArrowMemoryError("malloc of size 64 failed"), pa.ArrowException("Failed to launch worker thread")):
        assert parquet.unreadable(path, error).exit_code == 1
    assert parquet.unreadable(path, pa.ArrowInvalid("no magic bytes")).exit_code == 3
