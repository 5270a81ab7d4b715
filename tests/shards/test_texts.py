from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli.shards import schema
from primecli.shards.texts import row_of_broken_text
from tests.builders import rollouts, write_shards


def broken(texts: list[bytes | None]) -> pa.Array:
    """Texts as another tool may have written them, without a check."""
    values = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(texts), values.buffers())


@pytest.mark.parametrize(
    ("texts", "row"), [([b"a", None, b"b\xff", b"c"], 2), ([b"\xc3"], 0), ([b"a", "é".encode()], None)]
)
def test_the_row_of_a_text_that_is_not_utf8(texts: list[bytes | None], row: int | None) -> None:
    column = broken(texts)
    assert row_of_broken_text(pa.chunked_array([column])) == row
    assert row_of_broken_text(pa.chunked_array([column[:1], column[1:]])) == row
    nested = pa.ListArray.from_arrays(list(range(len(texts) + 1)), column)
    assert row_of_broken_text(pa.chunked_array([nested])) == row
    assert row_of_broken_text(pa.chunked_array([pa.StructArray.from_arrays([nested], ["a"])])) == row


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def write(name: str) -> Path:
        rows = [{**row, schema.PROCESS_REWARDS: [0.1] * len(row[schema.RESPONSE_IDS])} for row in rollouts(2, 2)]
        path = next(write_shards(tmp_path_factory.mktemp("broken"), rows).glob("*.parquet"))
        table = pq.read_table(path)
        index = table.schema.get_field_index(name)
        column = broken([b"a0", b"a0", b"a\xff", b"a\xff"])
        pq.write_table(table.set_column(index, pa.field(name, pa.string()), column), path)
        return path

    return write


@pytest.mark.parametrize("name", [schema.GROUP_ID, schema.PROMPT, schema.DATA_SOURCE])
def test_a_text_that_is_not_utf8_is_named_by_every_command(
    primecli: Any, shard: Any, tmp_path: Path, name: str
) -> None:
    path = shard(name)
    commands: list[list[object]] = [
        ["stats", path],
        ["inspect", path, "--limit", 4],
        ["audit", path],
        ["evaluate", path],
        ["verify", path, "--out", tmp_path / "verify"],
        ["filter", path, "--accuracy", 0, 1, "--allow-truncated", "--out", tmp_path / "filter"],  # reads all columns
    ]
    for arguments in commands:
        result = primecli(*arguments, check=False)
        assert result.code in ((3,) if arguments[0] == "filter" else (0, 3, 4))
        if result.code == 3:
            assert f"{path}: column {name} holds bytes that are not UTF-8 at row " in result.err
    found = primecli("validate", path, check=False).paths[1:]
    assert found == [Path(f"{path}: row 2, {name}: holds bytes that are not UTF-8")]
