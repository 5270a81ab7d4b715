"""Finding rollouts in shards by what they are: filters, orders and pairs, with a few bytes a row in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.shards import parquet, schema
from primecli.shards.columns import flat_column, list_sums
from primecli.shards.parquet import Shard
from primecli.shards.streaming import stream

if TYPE_CHECKING:
    import numpy as np

RIGHT = 0.5  # the least outcome reward of a response that counts as right


class Sort(StrEnum):
    """The order of rollouts, the largest first.

    reward: the sum of process rewards. disagreement: that sum counted against the outcome, so that a wrong response of
    a high score and a right one of a low score come first. lowest-token: by the lowest process reward of a token, the
    lowest first. length: tokens. outcome: the outcome reward.
    """

    reward = "reward"
    disagreement = "disagreement"
    lowest_token = "lowest-token"
    length = "length"
    outcome = "outcome"


SORT_COLUMNS: dict[Sort, tuple[str, ...]] = {
    Sort.reward: (schema.PROCESS_REWARDS,),
    Sort.disagreement: (schema.PROCESS_REWARDS, schema.OUTCOME_REWARD),
    Sort.lowest_token: (schema.PROCESS_REWARDS,),
    Sort.length: (schema.RESPONSE_IDS,),
    Sort.outcome: (schema.OUTCOME_REWARD,),
}
"""The columns that each order reads."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a rollout is.

    shard: the shard that holds it.
    row: its row there, from 0.
    """

    shard: Shard
    row: int


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which rollouts to find; None stands for any.

    row: the row of its shard, from 0.
    group: a group_id or its beginning.
    verdict: such as wrong.
    """

    row: int | None = None
    group: str | None = None
    verdict: str | None = None


@dataclass(frozen=True, slots=True)
class _Matches:
    """M rows of a shard that meet the criteria, in order.

    shard: the shard.
    rows: (M,) their numbers there.
    groups: (M,) the number of each row's group among those of the shard.
    outcomes: (M,) outcome rewards, NaN for null.
    keys: (M,) what they are sorted by.
    """

    shard: Shard
    rows: np.ndarray
    groups: np.ndarray
    outcomes: np.ndarray
    keys: np.ndarray

    def location(self, index: int) -> Location:
        """Where the row with this index among the M is."""
        return Location(self.shard, int(self.rows[index]))


def find(
    shards: Iterable[Shard], criteria: Criteria, *, sort: Sort | None = None, ascending: bool = False
) -> Iterator[Location]:
    """Rollouts that meet the criteria: each as it is found, in the order of the shards, or sorted once all are seen.

    ascending: the smallest first.
    """
    for matches, index in _ordered(_scan(shards, criteria, sort, paired=False), sort, ascending):
        yield matches.location(index)


def find_pairs(
    shards: Iterable[Shard], criteria: Criteria, *, sort: Sort | None = None, ascending: bool = False
) -> Iterator[tuple[Location, Location]]:
    """Of each group that has both, the first right and the first wrong rollout that `find` would give."""
    pairs: dict[tuple[Path, int], dict[bool, Location]] = {}  # by shard and group, the right and the wrong one so far
    for matches, index in _ordered(_scan(shards, criteria, sort, paired=True), sort, ascending):
        outcome = matches.outcomes[index]
        if math.isnan(outcome):
            continue
        pair = pairs.setdefault((matches.shard.path, int(matches.groups[index])), {})
        if len(pair) < 2:
            pair.setdefault(bool(outcome >= RIGHT), matches.location(index))
            if len(pair) == 2:
                yield pair[True], pair[False]


def _ordered(batches: Iterator[_Matches], sort: Sort | None, ascending: bool) -> Iterator[tuple[_Matches, int]]:
    """Each match as its batch and its index there."""
    import numpy as np

    if sort is None:
        for matches in batches:
            yield from ((matches, index) for index in range(len(matches.rows)))
        return
    kept = list(batches)
    keys = np.concatenate([matches.keys for matches in kept]) if kept else np.zeros(0)
    starts = np.concatenate([[0], np.cumsum([len(matches.rows) for matches in kept])])
    for position in np.argsort(keys if ascending else -keys, kind="stable"):  # NaN comes last either way
        batch = int(np.searchsorted(starts, position, side="right")) - 1
        yield kept[batch], int(position - starts[batch])


def _scan(shards: Iterable[Shard], criteria: Criteria, sort: Sort | None, *, paired: bool) -> Iterator[_Matches]:
    """The matches of every few thousand rows; reads only the columns that the question needs."""
    import numpy as np

    needed = set(SORT_COLUMNS[sort] if sort else ())
    needed |= {schema.VERDICT} if criteria.verdict is not None else set()
    needed |= {schema.GROUP_ID} if paired or criteria.group is not None else set()
    needed |= {schema.OUTCOME_REWARD} if paired else set()
    for shard in shards:
        parquet.require_columns(shard.path, shard.footer.columns, sorted(needed))
        if not needed:  # nothing to read: all rows, or one by its number
            rows = np.arange(shard.footer.rows) if criteria.row is None else np.array([criteria.row])
            rows = rows[rows < shard.footer.rows]
            zeros = np.zeros(len(rows))
            yield _Matches(shard, rows, zeros, zeros, zeros)
            continue
        group_numbers: dict[str, int] = {}
        for first_row, table in stream(shard.path, sorted(needed)):
            yield _select(shard, first_row, table, criteria, sort, group_numbers)


def _select(
    shard: Shard, first_row: int, table: Any, criteria: Criteria, sort: Sort | None, group_numbers: dict[str, int]
) -> _Matches:
    """The rows of a table that meet the criteria. group_numbers: of the groups seen so far; is added to."""
    import numpy as np
    import pyarrow.compute as pc

    rows = first_row + np.arange(table.num_rows)
    matching = np.ones(table.num_rows, dtype=bool)
    groups, outcomes = np.zeros(table.num_rows), np.full(table.num_rows, np.nan)
    if criteria.row is not None:
        matching &= rows == criteria.row
    if criteria.verdict is not None:
        matching &= pc.equal(table[schema.VERDICT], criteria.verdict).to_numpy()
    if schema.GROUP_ID in table.column_names:
        if criteria.group is not None:
            matching &= pc.starts_with(table[schema.GROUP_ID], criteria.group).to_numpy()
        ids = table[schema.GROUP_ID].to_pylist()
        groups = np.array([group_numbers.setdefault(id, len(group_numbers)) for id in ids])
    if schema.OUTCOME_REWARD in table.column_names:
        outcomes = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    keys = sort_keys(table, sort, outcomes)
    return _Matches(shard, rows[matching], groups[matching], outcomes[matching], keys[matching])


def sort_keys(table: Any, sort: Sort | None, outcomes: np.ndarray) -> np.ndarray:
    """(B,) float64: what the rows of a table are sorted by; NaN where a row has nothing to sort by."""
    import numpy as np

    if sort is None:
        return np.zeros(table.num_rows)
    if sort is Sort.outcome:
        return outcomes
    if sort is Sort.length:
        return np.asarray(flat_column(table, schema.RESPONSE_IDS)[1], dtype=np.float64)
    if sort is Sort.lowest_token:
        values, lengths = flat_column(table, schema.PROCESS_REWARDS)
        keys = np.full(len(lengths), np.nan)
        starts = np.cumsum(lengths) - lengths
        keys[lengths > 0] = -np.minimum.reduceat(values, starts[lengths > 0]) if len(values) else np.nan
        return keys
    scores, _ = list_sums(table, schema.PROCESS_REWARDS)
    if sort is Sort.reward:
        return scores
    return np.where(np.isnan(outcomes), np.nan, np.where(outcomes >= RIGHT, -scores, scores))
