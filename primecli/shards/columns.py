"""Columns of shards as NumPy arrays and back, without a Python loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from primecli.shards import schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def with_columns(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """The table with these columns (Arrow arrays or lists, by name) added or replaced, in the schema's types."""
    import pyarrow as pa

    for name, values in columns.items():
        field = schema.BY_NAME[name].field()
        array = values if isinstance(values, pa.Array) else pa.array(values, type=field.type)
        index = table.schema.get_field_index(name)
        table = table.append_column(field, array) if index < 0 else table.set_column(index, field, array)
    return table


def list_column(values: Any, lengths: Any, name: str) -> pa.Array:
    """The list column `name` from flat values and row lengths (NumPy arrays), without a Python loop."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    kind = schema.BY_NAME[name].arrow_type()
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=kind.value_type)).cast(kind)


def flat_column(table: pa.Table, name: str) -> tuple[Any, Any]:
    """The flat values and row lengths of a list column, as NumPy arrays, without a Python loop."""
    import numpy as np

    array = table[name].combine_chunks()
    offsets = array.offsets.to_numpy()
    return array.flatten().to_numpy(zero_copy_only=False), np.diff(offsets)


def list_sums(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each row's list, (B,) float64, and its length, (B,)."""
    import numpy as np

    values, lengths = flat_column(table, name)
    totals = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.cumsum(lengths)
    return totals[ends] - totals[ends - lengths], lengths
