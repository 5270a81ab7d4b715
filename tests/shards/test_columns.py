from __future__ import annotations

import numpy as np

from primecli.shards import schema
from primecli.shards.columns import flat_column, list_column, list_sums, with_columns
from tests.shards.test_parquet import table


def test_list_columns_come_back() -> None:
    values, lengths = np.arange(6, dtype=np.float32), np.array([1, 0, 3, 2])
    array = list_column(values, lengths, schema.ADVANTAGES)
    rows = with_columns(table(), {schema.ADVANTAGES: array})
    assert rows[schema.ADVANTAGES].to_pylist() == [[0], [], [1, 2, 3], [4, 5]]
    back, sizes = flat_column(rows.slice(2), schema.ADVANTAGES)
    assert (back.tolist(), sizes.tolist()) == ([1, 2, 3, 4, 5], [3, 2])


def test_sums_of_lists_that_may_be_empty() -> None:
    values, lengths = np.arange(6, dtype=np.float32), np.array([1, 0, 3, 2])
    sums, sizes = list_sums(with_columns(table(), {"returns": list_column(values, lengths, "returns")}), "returns")
    assert (sums.tolist(), sizes.tolist()) == ([0, 0, 6, 9], [1, 0, 3, 2])
