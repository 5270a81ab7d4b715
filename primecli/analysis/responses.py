"""Scored and graded responses as a few numbers each, gathered from shards whose token lists are read and dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError
from primecli.shards import parquet, schema
from primecli.shards.parquet import Shard
from primecli.shards.rollouts import check_lists
from primecli.shards.streaming import stream

if TYPE_CHECKING:
    import pyarrow as pa

NEEDS = (
    schema.GROUP_ID,
    schema.SAMPLE_INDEX,
    schema.PROMPT,
    schema.RESPONSE_IDS,
    schema.FINISH_REASON,
    schema.OUTCOME_REWARD,
    schema.PROCESS_REWARDS,
)
BATCH_ROWS = 128  # read at a time
NGRAM = 4
HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, with bits all over: an n-gram's hash is a polynomial in it, modulo 2^64
# No human solution of GSM8K and MATH-500 reaches the first two: there the most are 0.79 and 0.37.
MUCH_REPEATED = 0.8  # share of repeated n-grams from which a response is degenerate
LOOPED = 0.5  # … or share of its n-grams in the longest stretch of repeated ones: it went into a loop half-way
LONG_RUN = 30  # … or one token so many times in a row


@dataclass(frozen=True, slots=True)
class Responses:
    """B graded responses, some 50 bytes each.

    scores: sums of process rewards. outcomes: outcome rewards, none null. lengths: tokens. group: number of the group.
    tokens: a hash of the token ids. degenerate: whether the response says the same again and again. shard, row: where
    it stands. parts: the shards. ungraded: responses without an outcome reward, which were left out.
    """

    scores: np.ndarray
    outcomes: np.ndarray
    lengths: np.ndarray
    group: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray
    degenerate: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    group_ids: list[str]
    parts: list[Shard]
    ungraded: int = 0

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def right(self) -> np.ndarray:
        """(B,) bool: an outcome reward of a half or more."""
        return np.asarray(self.outcomes >= 0.5)

    def copies(self) -> np.ndarray:
        """(B,): how many responses of the group have the same tokens, itself included."""
        order = np.lexsort((self.tokens, self.group))
        new = (np.diff(self.group[order]) != 0) | (np.diff(self.tokens[order].view(np.int64)) != 0)
        kind = np.zeros(len(self), dtype=np.int64)
        kind[order] = np.concatenate([[0], np.cumsum(new)])
        return np.asarray(np.bincount(kind)[kind])


def collect(parts: Iterable[Shard]) -> Responses:
    """Reads what an audit needs, a hundred rows or so at a time.

    Raises InputError for missing columns, groups that are incomplete or stand in two shards, lists that do not fit
    the response, rewards that are not finite, outcome rewards outside 0 and 1, and where nothing is graded.
    """
    found: list[dict[str, np.ndarray]] = []
    numbers: dict[str, int] = {}  # of the groups, as they come
    owner: list[int] = []
    seen: list[Shard] = []
    for part in parts:
        parquet.require_columns(part.path, part.footer.columns, NEEDS)
        optional = [schema.GROUP_SIZE] if schema.GROUP_SIZE in part.footer.columns else []
        table = parquet.read_table(part.path, [schema.GROUP_ID, schema.SAMPLE_INDEX, *optional])
        parquet.check_groups(table, part.path)
        groups = table[schema.GROUP_ID].to_pylist()
        for group in dict.fromkeys(groups):
            if group in numbers:
                first = seen[owner[numbers[group]]].path
                raise parquet.split_group(group, first, part.path)
            numbers[group] = len(numbers)
            owner.append(len(seen))
        for row, columns in _reduced(part.path):
            rows = len(columns["scores"])
            columns["group"] = np.array([numbers[group] for group in groups[row : row + rows]], dtype=np.int32)
            columns["shard"] = np.full(rows, len(seen), dtype=np.int32)
            columns["row"] = np.arange(row, row + rows, dtype=np.int32)
            found.append(columns)
        seen.append(part)
    whole = {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}
    graded = ~np.isnan(whole["outcomes"])
    if not graded.any():
        raise InputError(f"{seen[0].path.parent}: no response has an outcome reward", "grade it with `primecli verify`")
    return Responses(
        **{name: values[graded] for name, values in whole.items()},
        group_ids=list(numbers),
        parts=seen,
        ungraded=int((~graded).sum()),
    )


def _reduced(path: Path) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The shard's rows as numbers, some at a time, with the place of the first of them."""
    columns = [schema.RESPONSE_IDS, schema.PROCESS_REWARDS, schema.FINISH_REASON, schema.OUTCOME_REWARD]
    for row, table in stream(path, columns, rows=BATCH_ROWS):
        check_lists(table, path, first_row=row)
        yield row, _numbers(table, path, row)


def _numbers(table: pa.Table, path: Path, first_row: int) -> dict[str, np.ndarray]:
    rewards, lengths = parquet.flat_column(table, schema.PROCESS_REWARDS)
    ids, _ = parquet.flat_column(table, schema.RESPONSE_IDS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    outcomes = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    odd = np.flatnonzero((outcomes < 0) | (outcomes > 1))
    if len(odd):
        row = int(odd[0])
        raise InputError(f"{path}: outcome_reward is {outcomes[row]:g} at row {first_row + row}; it is within 0 and 1")
    rows = [ids[start:end] for start, end in pairwise(starts)]
    hashes = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return {
        "scores": np.add.reduceat(rewards.astype(np.float64), starts[:-1]),
        "outcomes": outcomes,
        "lengths": lengths.astype(np.int32),
        "tokens": np.frombuffer(hashes, dtype=np.uint64),
        "truncated": np.array([reason == "length" for reason in table[schema.FINISH_REASON].to_pylist()]),
        "degenerate": degenerate(ids, lengths),
    }


def degenerate(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(B,) bool: which responses say the same again and again.

    That is: 80% of the token 4-grams stood in the response before; or half of them do so in one stretch, which is a
    loop; or one token stands 30 times in a row.

    ids: (N,) token ids, one response after another; lengths: (B,) tokens of each.

    >>> degenerate(np.array([5, 6, 7] * 20 + [*range(60)]), np.array([60, 60])).tolist()
    [True, False]
    """
    before, place = repeated_ngrams(ids, lengths)
    grams = np.maximum(lengths - NGRAM + 1, 0)
    share = np.bincount(place[before], minlength=len(lengths)) / np.maximum(grams, 1)
    stretch = longest_runs(place[before], np.flatnonzero(before), len(lengths)) / np.maximum(grams, 1)
    row = np.repeat(np.arange(len(lengths)), lengths)
    same = np.flatnonzero((ids[1:] == ids[:-1]) & (row[1:] == row[:-1]))
    run = longest_runs(row[same], same, len(lengths)) + 1
    return np.asarray((share >= MUCH_REPEATED) | (stretch >= LOOPED) | (run >= LONG_RUN))


def repeated_ngrams(ids: np.ndarray, lengths: np.ndarray, size: int = NGRAM) -> tuple[np.ndarray, np.ndarray]:
    """(M,) bool, which of all token n-grams stood in their response before; and (M,), the response of each.

    >>> repeated, _ = repeated_ngrams(np.array([1, 2, 1, 2, 3]), np.array([5]), size=2)
    >>> repeated.tolist()
    [False, False, True, False]
    """
    row = np.repeat(np.arange(len(lengths)), lengths)
    number = max(len(ids) - size + 1, 0)
    whole = row[:number] == row[len(ids) - number :]  # begins and ends in one response
    tokens = np.append(ids.astype(np.uint64), np.zeros(size, dtype=np.uint64))
    hashes = (row[:number].astype(np.uint64) + np.uint64(1)) * np.uint64(HASH_FACTOR**size % 2**64)
    for shift in range(size):
        hashes += tokens[shift : shift + number] * np.uint64(HASH_FACTOR**shift % 2**64)
    hashes = hashes[whole]
    order = np.argsort(hashes, kind="stable")
    before = np.zeros(len(hashes), dtype=bool)
    before[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return before, row[:number][whole]


def longest_runs(row: np.ndarray, position: np.ndarray, rows: int) -> np.ndarray:
    """(rows,): the most consecutive positions of each row. row, position: (M,), in order, position among all rows.

    >>> longest_runs(np.array([0, 0, 0, 1]), np.array([2, 3, 7, 8]), rows=3).tolist()
    [2, 1, 0]
    """
    found = np.zeros(rows, dtype=np.int64)
    if len(row):
        starts = np.flatnonzero(np.concatenate([[True], (np.diff(position) != 1) | (np.diff(row) != 0)]))
        np.maximum.at(found, row[starts], np.diff(np.append(starts, len(row))))
    return found
