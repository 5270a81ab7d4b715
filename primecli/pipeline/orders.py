"""A shard that is to be made, and one that was: what a stage and its workers, here or elsewhere, tell each other."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.files import TEMPORARY_PREFIX, Json
from primecli.pipeline.recipe import Moment
from primecli.shards import parquet, schema
from primecli.shards.groups import check_groups
from primecli.shards.parquet import Shard

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Made:
    """A shard that has been written.

    path: the file.
    rows: rollouts in it.
    counts: sums over its rows, by name.
    """

    path: Path
    rows: int
    counts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Order:
    """What it takes to write a shard, once its rows are there.

    directory: where it goes.
    name: of its file.
    fingerprint: hash of its recipe.
    recipe: what it depends on.
    provenance: the records of its input, the oldest first, and last that of this stage.
    """

    directory: Path
    name: str
    fingerprint: str
    recipe: Mapping[str, Json]
    provenance: tuple[Mapping[str, Any], ...] = field(repr=False)

    def write(self, path: Path, table: pa.Table, counts: Mapping[str, float], started: Moment) -> Made:
        """Writes the shard, whole or not at all. started: when work on it began, for its record."""
        all_counts = {**counts, "groups": len(table[schema.GROUP_ID].unique())}
        record = {
            **self.provenance[-1],
            "started": started.isoformat(),
            "seconds": round(started.seconds(), 3),
        }
        parquet.write_shard(
            path,
            table,
            fingerprint=self.fingerprint,
            recipe=self.recipe,
            counts=all_counts,
            provenance=[*self.provenance[:-1], record],
        )
        return Made(path, table.num_rows, all_counts)

    def stage(self, table: pa.Table, counts: Mapping[str, float], started: Moment) -> Made:
        """Writes the shard beside its name, under one that nobody else uses and `remove_leftovers` knows.

        Whoever holds the directory's lock then renames it. The name is new even to a network file system, which may
        remember for a while that a file did not exist.
        """
        path = self.directory / f"{TEMPORARY_PREFIX}{self.name}.{uuid.uuid4().int % 10**12}"
        return self.write(path, table, counts, started)


def read_whole(shard: Shard) -> pa.Table:
    """All columns of an input shard, after a check of its content, their types and of its groups.

    Raises InputError where the shard is not the one whose footer was read any more.
    """
    table = parquet.read_table(shard.path, expected=shard.footer, verify=True)
    parquet.require_columns(shard.path, table.column_names, [schema.GROUP_ID, schema.SAMPLE_INDEX])
    check_groups(table, shard.path)
    return table
