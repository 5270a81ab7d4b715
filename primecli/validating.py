"""What is wrong with shards, all of it: each problem with its shard, row and column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from primecli import schema, shards
from primecli.errors import InputError
from primecli.inputs import Shard

VERDICTS = ("correct", "wrong", "unparseable", "timeout", "error")
FINISH_REASONS = ("stop", "length")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. row, column: where, as far as it is of a row or of a column."""

    shard: Path
    what: str
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        where = [f"row {self.row}"] if self.row is not None else []
        where += [self.column] if self.column is not None else []
        return f"{self.shard}: {', '.join(where)}: {self.what}" if where else f"{self.shard}: {self.what}"


class Validator:
    """Looks at shards one after another; remembers groups, which may stand in one shard only."""

    def __init__(self) -> None:
        self.rows = 0
        self.shards = 0
        self._owner: dict[str, Path] = {}

    def check(self, shard: Shard) -> Iterator[Problem]:
        """Everything that is wrong with one shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.shards += 1
        self.rows += shard.footer.rows
        path = shard.path
        try:
            table = pq.ParquetFile(path).read()
        except (pa.ArrowException, OSError) as error:
            yield Problem(path, f"cannot be read: {error}")
            return
        if not table.num_rows:
            yield Problem(path, "has no rows")
            return
        yield from _check_footer(shard)
        for name in (schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS):
            if name not in table.column_names:
                yield Problem(path, "is missing", column=name)
        fitting = set()
        for name in table.column_names:
            problems = list(_check_type(path, table, name))
            yield from problems
            if not problems and name in schema.BY_NAME:
                fitting.add(name)
        table = table.select([name for name in table.column_names if name in fitting])
        yield from _check_lists(path, table)
        yield from _check_values(path, table)
        yield from self._check_groups(path, table)

    def _check_groups(self, path: Path, table: Any) -> Iterator[Problem]:
        if not {schema.GROUP_ID, schema.SAMPLE_INDEX} <= set(table.column_names):
            return
        groups, indices = (table[name].to_pylist() for name in (schema.GROUP_ID, schema.SAMPLE_INDEX))
        sizes = table[schema.GROUP_SIZE].to_pylist() if schema.GROUP_SIZE in table.column_names else None
        first: dict[str, int] = {}
        found: dict[str, list[int]] = {}
        for row, (group, index) in enumerate(zip(groups, indices, strict=True)):
            first.setdefault(group, row)
            found.setdefault(group, []).append(index)
        for group, samples in found.items():
            row = first[group]
            expected = sizes[row] if sizes is not None else len(samples)
            if sorted(samples) != list(range(expected)):
                what = f"group {group} has the samples {sorted(samples)} of {expected}"
                yield Problem(path, what, row, schema.SAMPLE_INDEX)
            if group in self._owner:
                yield Problem(path, f"group {group} stands in {self._owner[group]} too", row, schema.GROUP_ID)
            self._owner.setdefault(group, path)


def _check_footer(shard: Shard) -> Iterator[Problem]:
    footer, path = shard.footer, shard.path
    if footer.fingerprint is None:
        yield Problem(path, "has no primecli footer: another tool wrote it, and nothing says how")
        return
    if not footer.provenance:
        yield Problem(path, "its provenance is empty")
        return
    for number, record in enumerate(footer.provenance):
        missing = [key for key in ("stage", "command", "config", "fingerprint", "inputs") if key not in record]
        if missing:
            yield Problem(path, f"link {number + 1} of its provenance lacks {', '.join(missing)}")
    if footer.provenance[-1].get("fingerprint") != footer.fingerprint:
        yield Problem(path, "its last provenance record is of another recipe than its footer")
    content = shards.content_of(path)
    if content != footer.content:
        yield Problem(
            path, f"its rows are not those that were written: they have the hash {content}, not {footer.content}"
        )


def _check_type(path: Path, table: Any, name: str) -> Iterator[Problem]:
    column = schema.BY_NAME.get(name)
    if column is None:
        return
    found = table.schema.field(name).type
    if not found.equals(column.arrow_type()):
        yield Problem(path, f"is {found}, and the schema says {column.type}", column=name)
    elif not column.nullable and table[name].null_count:
        row = table[name].is_null().to_pylist().index(True)
        yield Problem(path, f"is null, in {table[name].null_count} rows", row, name)


def _check_lists(path: Path, table: Any) -> Iterator[Problem]:
    lists = {}
    for name in (schema.RESPONSE_IDS, schema.PROMPT_IDS, *schema.PER_RESPONSE_TOKEN):
        if name in table.column_names:
            if table[name].combine_chunks().flatten().null_count:
                yield Problem(path, "holds a null within a list", column=name)
                continue
            lists[name] = shards.flat_column(table, name)
    for name in (schema.RESPONSE_IDS, schema.PROMPT_IDS):
        if name in lists:
            values, lengths = lists[name]
            for row in np.flatnonzero(lengths == 0).tolist():
                yield Problem(path, "is empty", row, name)
            for row in np.unique(
                np.searchsorted(np.cumsum(lengths), np.flatnonzero(values < 0), side="right")
            ).tolist():
                yield Problem(path, "holds a negative token id", row, name)
    if schema.RESPONSE_IDS not in lists:
        return
    expected = lists[schema.RESPONSE_IDS][1]
    for name in schema.PER_RESPONSE_TOKEN:
        if name not in lists:
            continue
        values, lengths = lists[name]
        for row in np.flatnonzero(lengths != expected).tolist():
            yield Problem(path, f"has {lengths[row]} values for {expected[row]} response tokens", row, name)
        odd = np.flatnonzero(~np.isfinite(values))
        rows, at = np.unique(np.searchsorted(np.cumsum(lengths), odd, side="right"), return_index=True)
        for row, place in zip(rows.tolist(), at.tolist(), strict=True):
            yield Problem(path, f"is {values[odd[place]]} at a token", row, name)
        if name == schema.ROLLOUT_LOGPROBS:
            above = np.flatnonzero(values > 1e-4)
            for row in np.unique(np.searchsorted(np.cumsum(lengths), above, side="right")).tolist():
                yield Problem(path, "is above 0, and a log-probability is not", row, name)


def _check_values(path: Path, table: Any) -> Iterator[Problem]:
    if schema.OUTCOME_REWARD in table.column_names:
        rewards = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
        for row in np.flatnonzero((rewards < 0) | (rewards > 1)).tolist():
            yield Problem(path, f"is {rewards[row]:g}; it is within 0 and 1", row, schema.OUTCOME_REWARD)
    for name, allowed in ((schema.VERDICT, VERDICTS), (schema.FINISH_REASON, FINISH_REASONS)):
        if name in table.column_names:
            for place, value in enumerate(table[name].to_pylist()):
                if value not in allowed:
                    yield Problem(path, f"is {value!r}; it is one of {', '.join(allowed)}", place, name)
    if schema.OUTCOME_REWARD in table.column_names and schema.VERDICT in table.column_names:
        verdicts = table[schema.VERDICT].to_pylist()
        for row in np.flatnonzero(np.isnan(rewards)).tolist():
            if verdicts[row] != "error":
                yield Problem(path, f"is null, and the verdict is {verdicts[row]}", row, schema.OUTCOME_REWARD)


def problems_of(parts: Iterable[Shard], validator: Validator) -> Iterator[Problem]:
    """Everything that is wrong with these shards; one that cannot be opened ends the search."""
    try:
        for shard in parts:
            yield from validator.check(shard)
    except InputError as error:
        path, _, what = error.message.partition(": ")
        yield Problem(Path(path), what or error.message)
