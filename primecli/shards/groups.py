"""Groups in shards: complete, and each in one shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.errors import InputError
from primecli.shards import schema
from primecli.shards.parquet import MAKE_AGAIN

if TYPE_CHECKING:
    import pyarrow as pa


def check_groups(table: pa.Table, path: Path) -> int:
    """Checks that every group of a shard is complete, and returns their number.

    A group is complete when its `sample_index` values are 0 … n-1, each once, where n is its `group_size` if the shard
    has that column. Raises InputError for the first group that is not.
    """
    samples: dict[str, list[int]] = {}
    indices = table[schema.SAMPLE_INDEX].to_pylist()
    groups = table[schema.GROUP_ID].to_pylist()
    for group, index in zip(groups, indices, strict=True):
        samples.setdefault(group, []).append(index)
    sizes: dict[str, int] = {}
    if schema.GROUP_SIZE in table.column_names:
        sizes = dict(zip(groups, table[schema.GROUP_SIZE].to_pylist(), strict=True))
    for group, present in samples.items():
        expected = sizes.get(group, len(present))
        if sorted(present) != list(range(expected)):
            raise InputError(
                f"{path}: group {group} is incomplete: it has {len(present)} of {expected} samples"
                if len(present) < expected
                else f"{path}: group {group} has the sample_index values {_abbreviated(sorted(present))}",
                f"all samples of a prompt belong in one shard; {MAKE_AGAIN}",
            )
    return len(samples)


def claim_groups(groups: Iterable[str], shard: Path, owners: dict[str, Path]) -> None:
    """Notes in `owners` that these groups are in this shard. Raises InputError where another shard has one of them."""
    for group in groups:
        if group in owners:
            raise InputError(
                f"group {group} is in two shards, {owners[group]} and {shard}",
                "all samples of a prompt belong in one",
            )
        owners[group] = shard


def _abbreviated(numbers: Sequence[int]) -> str:
    """The numbers as text, at most the first eight.

    >>> _abbreviated([0, 1]), _abbreviated(range(500))
    ('0, 1', '0, 1, 2, 3, 4, 5, 6, 7, … (500)')
    """
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, … ({len(numbers)})"
