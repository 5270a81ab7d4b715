"""Finding rollouts in shards by what they are: filters, orders and pairs, with a few bytes a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from primecli.analysis.statistics import sums
from primecli.shards import parquet, schema
from primecli.shards.parquet import Shard
from primecli.shards.streaming import stream

SORTS: dict[str, tuple[str, ...]] = {
    "reward": (schema.PROCESS_REWARDS,),
    "disagreement": (schema.PROCESS_REWARDS, schema.OUTCOME_REWARD),
    "lowest-token": (schema.PROCESS_REWARDS,),
    "length": (schema.RESPONSE_IDS,),
    "outcome": (schema.OUTCOME_REWARD,),
}
"""Orders, with the columns that each needs."""

RIGHT = 0.5  # outcome reward from which a response counts as a right one


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rollout stands: its shard and its row there, from 0."""

    shard: Shard
    row: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rollouts are meant; None is any. group: a group_id or its beginning."""

    row: int | None = None
    group: str | None = None
    verdict: str | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a shard that are meant, in order. rows, groups, outcomes, keys: (M,) each.

    groups: the number of each row's group among those of the shard. keys: what rows are sorted by.
    """

    shard: Shard
    rows: np.ndarray
    groups: np.ndarray
    outcomes: np.ndarray
    keys: np.ndarray


def find(
    parts: Iterable[Shard], wanted: Wanted, *, sort: str | None = None, ascending: bool = False
) -> Iterator[Place]:
    """Rollouts that are meant: as they are found, in the order of the shards, or sorted, once all are seen.

    reward: sum of process rewards. disagreement: that sum, counted against the outcome: a wrong response of a high
    score, or a right one of a low score, is first. lowest-token: the token of the lowest process reward, lowest first.
    length: tokens. outcome: outcome reward. The largest first, or with `ascending` the smallest.
    """
    for part, index in _ordered(_scan(parts, wanted, sort, paired=False), sort, ascending):
        yield Place(part.shard, int(part.rows[index]))


def find_pairs(
    parts: Iterable[Shard], wanted: Wanted, *, sort: str | None = None, ascending: bool = False
) -> Iterator[tuple[Place, Place]]:
    """Of each group that has both, the first right and the first wrong rollout that `find` would give."""
    waiting: dict[tuple[Path, int], dict[bool, Place]] = {}
    for part, index in _ordered(_scan(parts, wanted, sort, paired=True), sort, ascending):
        outcome = part.outcomes[index]
        if np.isnan(outcome):
            continue
        found = waiting.setdefault((part.shard.path, int(part.groups[index])), {})
        if len(found) < 2:
            found.setdefault(bool(outcome >= RIGHT), Place(part.shard, int(part.rows[index])))
            if len(found) == 2:
                yield found[True], found[False]


def _ordered(parts: Iterator[_Part], sort: str | None, ascending: bool) -> Iterator[tuple[_Part, int]]:
    if sort is None:
        for part in parts:
            yield from ((part, index) for index in range(len(part.rows)))
        return
    every = list(parts)
    sizes = [len(part.rows) for part in every]
    keys = np.concatenate([part.keys for part in every]) if every else np.zeros(0)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for number in np.argsort(keys if ascending else -keys, kind="stable"):  # NaN stands last either way
        place = int(np.searchsorted(starts, number, side="right")) - 1
        yield every[place], int(number - starts[place])


def _scan(parts: Iterable[Shard], wanted: Wanted, sort: str | None, *, paired: bool) -> Iterator[_Part]:
    """The rows of each few thousand that are meant; reads the columns that the question needs."""
    needs = set(SORTS[sort] if sort else ())
    needs |= {schema.VERDICT} if wanted.verdict is not None else set()
    needs |= {schema.GROUP_ID} if paired or wanted.group is not None else set()
    needs |= {schema.OUTCOME_REWARD} if paired else set()
    for shard in parts:
        parquet.require_columns(shard.path, shard.footer.columns, sorted(needs))
        if not needs:  # nothing to read: any row, or one by its number
            rows = np.arange(shard.footer.rows) if wanted.row is None else np.array([wanted.row])
            rows = rows[rows < shard.footer.rows]
            nothing = np.zeros(len(rows))
            yield _Part(shard, rows, nothing, nothing, nothing)
            continue
        names: dict[str, int] = {}
        for first, table in stream(shard.path, sorted(needs)):
            yield _select(shard, first, table, wanted, sort, names)


def _select(shard: Shard, first: int, table: Any, wanted: Wanted, sort: str | None, names: dict[str, int]) -> _Part:
    import pyarrow.compute as pc

    rows = first + np.arange(table.num_rows)
    meant = np.ones(table.num_rows, dtype=bool)
    groups, outcomes = np.zeros(table.num_rows), np.full(table.num_rows, np.nan)
    if wanted.row is not None:
        meant &= rows == wanted.row
    if wanted.verdict is not None:
        meant &= pc.equal(table[schema.VERDICT], wanted.verdict).to_numpy()
    if schema.GROUP_ID in table.column_names:
        if wanted.group is not None:
            meant &= pc.starts_with(table[schema.GROUP_ID], wanted.group).to_numpy()
        texts = table[schema.GROUP_ID].to_pylist()
        groups = np.array([names.setdefault(text, len(names)) for text in texts])
    if schema.OUTCOME_REWARD in table.column_names:
        outcomes = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    keys = sort_keys(table, sort, outcomes)
    return _Part(shard, rows[meant], groups[meant], outcomes[meant], keys[meant])


def sort_keys(table: Any, sort: str | None, outcomes: np.ndarray) -> np.ndarray:
    """(B,) float64: what the rows of a table are sorted by, NaN where nothing is to say."""
    if sort is None:
        return np.zeros(table.num_rows)
    if sort == "outcome":
        return outcomes
    if sort == "length":
        return np.asarray(parquet.flat_column(table, schema.RESPONSE_IDS)[1], dtype=np.float64)
    if sort == "lowest-token":
        values, lengths = parquet.flat_column(table, schema.PROCESS_REWARDS)
        lowest = np.full(len(lengths), np.nan)
        starts = np.cumsum(lengths) - lengths
        lowest[lengths > 0] = -np.minimum.reduceat(values, starts[lengths > 0]) if len(values) else np.nan
        return lowest
    scores, _ = sums(table, schema.PROCESS_REWARDS)
    if sort == "reward":
        return scores
    return np.where(np.isnan(outcomes), np.nan, np.where(outcomes >= RIGHT, -scores, scores))
