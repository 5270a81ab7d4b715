"""Scored and graded responses as a few numbers each, gathered from shards whose token lists are read and dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from primecli.analysis.search import RIGHT
from primecli.errors import InputError
from primecli.models.steps import StepFinder, step_sums
from primecli.shards import parquet, schema
from primecli.shards.columns import flat_column
from primecli.shards.groups import check_groups, claim_groups
from primecli.shards.parquet import Shard
from primecli.shards.rollouts import check_lists
from primecli.shards.steps import given_step_ends
from primecli.shards.streaming import stream

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED_COLUMNS = (
    schema.GROUP_ID,
    schema.SAMPLE_INDEX,
    schema.PROMPT,
    schema.RESPONSE_IDS,
    schema.FINISH_REASON,
    schema.OUTCOME_REWARD,
    schema.PROCESS_REWARDS,
)
BATCH_ROWS = 128  # in memory at once, with several arrays of 8 bytes for each of their tokens
NGRAM = 4
HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, with mixed bits: an n-gram's hash is a polynomial in it, modulo 2^64
# No human solution of GSM8K and MATH-500 reaches the first two bounds: the largest there are 0.79 and 0.37.
MUCH_REPEATED = 0.8  # share of repeated n-grams from which a response is degenerate
LOOPED = 0.5  # the same for the longest stretch of repeated n-grams: half of the response is a loop
LONG_RUN = 30  # the same for how often one token comes in a row


@dataclass(frozen=True, slots=True)
class Responses:
    """B graded responses, some 50 bytes each.

    scores: (B,) sums of process rewards.
    outcomes: (B,) outcome rewards, none NaN.
    lengths: (B,) tokens.
    group: (B,) number of the group, an index into group_ids.
    tokens: (B,) uint64, a hash of the token ids.
    truncated: (B,) bool, whether it was cut at its length limit.
    degenerate: (B,) bool, whether it repeats itself; see `degenerate`.
    last_lowest: (B,) 1 where the last of its steps has a lower reward than each other, 0 where it has not, NaN where it
        has one step or its steps are not known.
    shard: (B,) index into shards.
    row: (B,) its row in that shard, from 0.
    group_ids: of each group.
    shards: in the order in which they were read.
    ungraded: responses without an outcome reward, which are left out.
    """

    scores: np.ndarray
    outcomes: np.ndarray
    lengths: np.ndarray
    group: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray
    degenerate: np.ndarray
    last_lowest: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    group_ids: list[str]
    shards: list[Shard]
    ungraded: int = 0

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def right(self) -> np.ndarray:
        """(B,) bool: an outcome reward of a half or more."""
        return np.asarray(self.outcomes >= RIGHT)

    def copies(self) -> np.ndarray:
        """(B,): how many responses of the group have the same tokens, itself included."""
        order = np.lexsort((self.tokens, self.group))
        new = (np.diff(self.group[order]) != 0) | (np.diff(self.tokens[order].view(np.int64)) != 0)
        kind = np.zeros(len(self), dtype=np.int64)  # a number for each distinct response of a group
        kind[order] = np.concatenate([[0], np.cumsum(new)])
        return np.asarray(np.bincount(kind)[kind])


def collect(shards: Iterable[Shard], finder: StepFinder | None = None) -> Responses:
    """Reads what an audit needs, BATCH_ROWS rows at a time.

    finder: finds the steps of shards that do not say where they end; None to leave them unknown.

    Raises InputError for missing columns, groups that are incomplete or in two shards, lists that do not fit the
    response, rewards that are not finite, outcome rewards outside 0 and 1, and where nothing is graded.
    """
    batches: list[dict[str, np.ndarray]] = []
    group_numbers: dict[str, int] = {}  # in the order in which the groups are first seen
    owners: dict[str, Path] = {}
    seen: list[Shard] = []
    for shard in shards:
        parquet.require_columns(shard.path, shard.footer.columns, REQUIRED_COLUMNS)
        optional = [schema.GROUP_SIZE] if schema.GROUP_SIZE in shard.footer.columns else []
        table = parquet.read_table(shard.path, [schema.GROUP_ID, schema.SAMPLE_INDEX, *optional])
        check_groups(table, shard.path)
        groups = table[schema.GROUP_ID].to_pylist()
        claim_groups(dict.fromkeys(groups), shard.path, owners)
        numbers = [group_numbers.setdefault(group, len(group_numbers)) for group in groups]
        for first_row, columns in _reduced(shard, finder):
            rows = len(columns["scores"])
            columns["group"] = np.array(numbers[first_row : first_row + rows], dtype=np.int32)
            columns["shard"] = np.full(rows, len(seen), dtype=np.int32)
            columns["row"] = np.arange(first_row, first_row + rows, dtype=np.int32)
            batches.append(columns)
        seen.append(shard)
    whole = {name: np.concatenate([columns[name] for columns in batches]) for name in batches[0]}
    graded = ~np.isnan(whole["outcomes"])
    if not graded.any():
        raise InputError(f"{seen[0].path.parent}: no response has an outcome reward", "grade it with `primecli verify`")
    return Responses(
        **{name: values[graded] for name, values in whole.items()},
        group_ids=list(group_numbers),
        shards=seen,
        ungraded=int((~graded).sum()),
    )


def _reduced(shard: Shard, finder: StepFinder | None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The shard's rows as numbers, a batch at a time, each with the number of its first row."""
    path = shard.path
    columns = [schema.RESPONSE_IDS, schema.PROCESS_REWARDS, schema.FINISH_REASON, schema.OUTCOME_REWARD]
    columns += [schema.STEP_ENDS] if schema.STEP_ENDS in shard.footer.columns else []
    for first_row, table in stream(path, columns, rows=BATCH_ROWS):
        check_lists(table, path, first_row=first_row)
        given = given_step_ends(table, path, first_row=first_row)
        ends = given if finder is None else finder.ends(table, shard, first_row=first_row)
        yield first_row, {**_numbers(table, path, first_row), "last_lowest": _last_lowest(table, ends)}


def _last_lowest(table: pa.Table, ends: Sequence[np.ndarray | None]) -> np.ndarray:
    """(B,): see `Responses`. ends: the last tokens of each response's steps; None where they are not known."""
    rewards, lengths = flat_column(table, schema.PROCESS_REWARDS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    found = np.full(table.num_rows, np.nan)
    for row, of_row in enumerate(ends):
        if of_row is not None and len(of_row) > 1:
            steps = step_sums(rewards[starts[row] : starts[row + 1]].astype(np.float64), of_row)
            found[row] = (steps[:-1] > steps[-1]).all()
    return found


def _numbers(table: pa.Table, path: Path, first_row: int) -> dict[str, np.ndarray]:
    rewards, lengths = flat_column(table, schema.PROCESS_REWARDS)
    ids, _ = flat_column(table, schema.RESPONSE_IDS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    outcomes = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    outside = np.flatnonzero((outcomes < 0) | (outcomes > 1))
    if len(outside):
        row = int(outside[0])
        raise InputError(
            f"{path}: outcome_reward is {outcomes[row]:g} at row {first_row + row}; it must be within 0 and 1"
        )
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
    """(B,) bool: which responses repeat themselves.

    That is: 80% of a response's token 4-grams occur earlier in it; or half of them do, in one stretch, which is a
    loop; or one token comes 30 times in a row.

    ids: (N,) token ids, one response after another; lengths: (B,) tokens of each.

    >>> degenerate(np.array([5, 6, 7] * 20 + [*range(60)]), np.array([60, 60])).tolist()
    [True, False]
    """
    repeated, row = repeated_ngrams(ids, lengths)
    ngrams = np.maximum(lengths - NGRAM + 1, 1)  # (B,), at least 1 to divide by
    share = np.bincount(row[repeated], minlength=len(lengths)) / ngrams
    stretch = longest_runs(row[repeated], np.flatnonzero(repeated), len(lengths)) / ngrams
    row_of_token = np.repeat(np.arange(len(lengths)), lengths)
    same = np.flatnonzero((ids[1:] == ids[:-1]) & (row_of_token[1:] == row_of_token[:-1]))
    run = longest_runs(row_of_token[same], same, len(lengths)) + 1
    return np.asarray((share >= MUCH_REPEATED) | (stretch >= LOOPED) | (run >= LONG_RUN))


def repeated_ngrams(ids: np.ndarray, lengths: np.ndarray, size: int = NGRAM) -> tuple[np.ndarray, np.ndarray]:
    """Which of all M token n-grams occur earlier in their response, (M,) bool, and the response of each, (M,).

    ids, lengths: as for `degenerate`.

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
    repeated = np.zeros(len(hashes), dtype=bool)
    repeated[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return repeated, row[:number][whole]


def longest_runs(row: np.ndarray, position: np.ndarray, rows: int) -> np.ndarray:
    """(rows,): the length of the longest run of consecutive positions in each row.

    row, position: (M,), in order; the positions count on over all rows.

    >>> longest_runs(np.array([0, 0, 0, 1]), np.array([2, 3, 7, 8]), rows=3).tolist()
    [2, 1, 0]
    """
    longest = np.zeros(rows, dtype=np.int64)
    if len(row):
        starts = np.flatnonzero(np.concatenate([[True], (np.diff(position) != 1) | (np.diff(row) != 0)]))
        np.maximum.at(longest, row[starts], np.diff(np.append(starts, len(row))))
    return longest
