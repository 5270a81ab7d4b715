"""Finding rollouts in shards and reading one of them, without loading a shard whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from primecli import schema, shards
from primecli.errors import InputError
from primecli.inputs import Shard
from primecli.tokens import Piece

SORTS = ("reward", "disagreement", "length", "outcome")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rollout stands: its shard, its row there, its group, its verdict, and what it is sorted by."""

    shard: Shard
    row: int
    group_id: str
    verdict: str | None
    key: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rollouts are meant; None is any."""

    row: int | None = None
    group: str | None = None
    verdict: str | None = None


def find(
    parts: Iterable[Shard], wanted: Wanted, *, sort: str | None = None, ascending: bool = False
) -> Iterator[Place]:
    """Rollouts that are meant: in the order of the shards, as they are found, or sorted, once all are seen.

    reward: sum of process rewards; disagreement: that sum, counted against the outcome (a wrong response of a high
    score, or a right one of a low score, first); length: tokens; outcome: outcome reward.
    """
    found = _scan(parts, wanted, sort)
    if sort is None:
        yield from found
        return
    yield from sorted(found, key=lambda place: place.key if ascending else -place.key)


def _scan(parts: Iterable[Shard], wanted: Wanted, sort: str | None) -> Iterator[Place]:
    needs = {
        None: [],
        "reward": [schema.PROCESS_REWARDS],
        "disagreement": [schema.PROCESS_REWARDS, schema.OUTCOME_REWARD],
        "length": [schema.RESPONSE_IDS],
        "outcome": [schema.OUTCOME_REWARD],
    }[sort]
    if wanted.verdict is not None:
        needs = [*needs, schema.VERDICT]
    for shard in parts:
        shards.require_columns(shard.path, shard.footer.columns, [schema.GROUP_ID, *needs])
        optional = [schema.VERDICT] if schema.VERDICT in shard.footer.columns else []
        table = shards.read_table(shard.path, list(dict.fromkeys([schema.GROUP_ID, *needs, *optional])))
        groups = table[schema.GROUP_ID].to_pylist()
        verdicts = table[schema.VERDICT].to_pylist() if optional else [None] * len(groups)
        keys = sort_keys(table, sort)
        for row, (group, verdict) in enumerate(zip(groups, verdicts, strict=True)):
            if (
                (wanted.row is None or wanted.row == row)
                and (wanted.group is None or group.startswith(wanted.group))
                and (wanted.verdict is None or verdict == wanted.verdict)
            ):
                yield Place(shard, row, group, verdict, float(keys[row]))


def sort_keys(table: Any, sort: str | None) -> np.ndarray:
    """(B,): what the rows of a table are sorted by; an outcome that is missing stands last."""
    if sort is None:
        return np.zeros(table.num_rows)
    if sort == "length":
        return np.asarray(shards.flat_column(table, schema.RESPONSE_IDS)[1], dtype=np.float64)
    outcome = np.zeros(table.num_rows)
    if schema.OUTCOME_REWARD in table.column_names:
        outcome = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    if sort == "outcome":
        return np.nan_to_num(outcome, nan=-1.0)
    rewards, lengths = shards.flat_column(table, schema.PROCESS_REWARDS)
    sums = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    ends = np.cumsum(lengths)
    scores: np.ndarray = sums[ends] - sums[ends - lengths]
    if sort == "reward":
        return scores
    against = np.where(outcome >= 0.5, -scores, scores)
    return np.where(np.isnan(outcome), -np.inf, against)


def read_row(shard: Shard, row: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """The named columns of one row, all when None, by way of its row group alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(shard.path)
        first = 0
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if row < first + rows:
                found: dict[str, Any] = file.read_row_group(number, columns).slice(row - first, 1).to_pylist()[0]
                return found
            first += rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shard.path}: cannot be read: {error}") from error
    raise InputError(f"{shard.path}: has {shard.footer.rows} rows; there is no row {row}", "rows are counted from 0")


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a response: its pieces [first, last), the sum of its tokens' values, and the sum up to its end."""

    first: int
    last: int
    total: float
    cumulative: float


def steps_of(found: list[Piece], values: np.ndarray, separator: str) -> list[Step]:
    """The steps of a response: a piece that ends its run of separators ends a step.

    values: (T,), one a token.
    """
    steps: list[Step] = []
    first = 0
    text = ""
    for place, piece in enumerate(found):
        text += piece.text
        following = found[place + 1].text if place + 1 < len(found) else ""
        ended = separator in text and not following.startswith(separator)
        if ended or place + 1 == len(found):
            total = float(values[found[first].first : piece.last].sum())
            steps.append(Step(first, place + 1, total, total + (steps[-1].cumulative if steps else 0.0)))
            first, text = place + 1, ""
    return steps


def piece_values(found: list[Piece], values: np.ndarray) -> np.ndarray:
    """(pieces,): the sum of each piece's token values."""
    return np.array([values[piece.first : piece.last].sum() for piece in found])
