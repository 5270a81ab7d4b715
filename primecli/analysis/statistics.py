"""Statistics of shards in one pass: accuracy, pass@k, verdicts, lengths and rewards, by data source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from primecli.analysis.at_k import pass_at_k, powers_up_to
from primecli.shards import parquet, schema
from primecli.shards.columns import list_sums
from primecli.shards.parquet import Shard
from primecli.shards.streaming import BATCH_ROWS, stream

if TYPE_CHECKING:
    import pyarrow as pa

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ALL = "all"
NONE = -1  # the code of a null, and of every row of a shard without the column


@dataclass(frozen=True, slots=True)
class Gathered:
    """Numbers of B responses in G groups, some thirty bytes a response.

    outcomes: (B,) outcome rewards, NaN for null.
    verified: (B,) bool, whether the shard has been through `verify`.
    lengths: (B,) tokens.
    scores: (B,) sums of process rewards, NaN where the shard has none.
    verdicts: (B,) indices into verdict_names, or NONE.
    sources: (B,) indices into source_names, or NONE.
    truncated: (B,) 1 or 0, NONE where the shard does not say.
    groups: (G, 5) of each group: samples, graded samples, right samples (outcome reward 1), summed outcome reward,
        source.
    verdict_names: such as ("correct", "wrong").
    source_names: the data sources, in the order in which they were first seen.
    """

    outcomes: np.ndarray
    verified: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    verdicts: np.ndarray
    sources: np.ndarray
    truncated: np.ndarray
    groups: np.ndarray
    verdict_names: tuple[str, ...]
    source_names: tuple[str, ...]

    def of_source(self, name: str) -> Gathered:
        """The responses and groups of one data source."""
        code = self.source_names.index(name)
        of_responses = ("outcomes", "verified", "lengths", "scores", "verdicts", "sources", "truncated")
        return Gathered(
            **{field: getattr(self, field)[self.sources == code] for field in of_responses},
            groups=self.groups[self.groups[:, 4] == code],
            verdict_names=self.verdict_names,
            source_names=self.source_names,
        )


class _Codes:
    """Numbers texts from 0, in the order in which they are first seen."""

    def __init__(self) -> None:
        self._by_text: dict[str, int] = {}

    def texts(self) -> tuple[str, ...]:
        """The texts by their numbers."""
        return tuple(self._by_text)

    def encode(self, column: Any) -> np.ndarray:
        """(B,) int64: the numbers of a column of texts; NONE for null."""
        encoded = column.combine_chunks().dictionary_encode()
        codes = [self._by_text.setdefault(text, len(self._by_text)) for text in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(NONE).to_numpy(zero_copy_only=False)
        numbers: np.ndarray = np.append(np.array(codes, dtype=np.int64), NONE)[indices]  # NONE is its last index too
        return numbers


def gather(shards: Iterable[Shard], *, batch_rows: int = BATCH_ROWS) -> Gathered:
    """Reads what the statistics need of the columns that the shards have.

    batch_rows: rows that are held in memory at once.
    """
    verdicts, sources = _Codes(), _Codes()
    columns: dict[str, list[np.ndarray]] = {}
    groups: list[np.ndarray] = []
    for shard in shards:
        group_codes = _Codes()  # a group is in one shard
        group_numbers: list[np.ndarray] = []
        batches: dict[str, list[np.ndarray]] = {}
        for table in _tables(shard, batch_rows):
            group_numbers.append(group_codes.encode(table[schema.GROUP_ID]))
            for name, values in _reduce(table, verdicts, sources).items():
                batches.setdefault(name, []).append(values)
        of_shard = {name: np.concatenate(parts) for name, parts in batches.items()}
        groups.append(_group_counts(np.concatenate(group_numbers), of_shard["outcomes"], of_shard["sources"]))
        for name, values in of_shard.items():
            columns.setdefault(name, []).append(values)
    return Gathered(
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        groups=np.concatenate(groups),
        verdict_names=verdicts.texts(),
        source_names=sources.texts(),
    )


def _tables(shard: Shard, batch_rows: int) -> Iterator[pa.Table]:
    present = shard.footer.columns
    parquet.require_columns(shard.path, present, [schema.GROUP_ID, schema.RESPONSE_IDS])
    # any list over the response has its length: one that is read anyway saves reading another
    lists = schema.PROCESS_REWARDS if schema.PROCESS_REWARDS in present else schema.RESPONSE_IDS
    optional = (schema.DATA_SOURCE, schema.OUTCOME_REWARD, schema.VERDICT, schema.FINISH_REASON)
    names = [schema.GROUP_ID, lists, *(name for name in optional if name in present)]
    return (table for _, table in stream(shard.path, names, rows=batch_rows))


def _reduce(table: pa.Table, verdicts: _Codes, sources: _Codes) -> dict[str, np.ndarray]:
    """One number a row for each of Gathered's columns."""
    import pyarrow.compute as pc

    rows, present = table.num_rows, table.column_names
    no_value, no_code = np.full(rows, np.nan), np.full(rows, NONE)
    scores, outcomes, truncated = no_value, no_value, no_code
    verdict_codes, source_codes = no_code, no_code
    if schema.PROCESS_REWARDS in present:
        scores, lengths = list_sums(table, schema.PROCESS_REWARDS)
    else:
        lengths = pc.list_value_length(table[schema.RESPONSE_IDS]).to_numpy()
    if schema.OUTCOME_REWARD in present:
        outcomes = table[schema.OUTCOME_REWARD].to_numpy()
    if schema.FINISH_REASON in present:
        truncated = pc.equal(table[schema.FINISH_REASON], "length").to_numpy()
    if schema.VERDICT in present:
        verdict_codes = verdicts.encode(table[schema.VERDICT])
    if schema.DATA_SOURCE in present:
        source_codes = sources.encode(table[schema.DATA_SOURCE])
    return {
        "outcomes": outcomes.astype(np.float32),
        "verified": np.full(rows, schema.OUTCOME_REWARD in present),
        "lengths": lengths.astype(np.int32),
        "scores": scores,
        "verdicts": verdict_codes.astype(np.int8),
        "sources": source_codes.astype(np.int32),
        "truncated": truncated.astype(np.int8),
    }


def _group_counts(group_numbers: np.ndarray, outcomes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """(G, 5) float64: Gathered's `groups` of one shard. All are (B,); group_numbers: the group of each row."""
    size = np.bincount(group_numbers)
    source = np.full(len(size), NONE)
    source[group_numbers] = sources
    weights = (~np.isnan(outcomes), outcomes >= 1, np.nan_to_num(outcomes))
    sums = [np.bincount(group_numbers, weights=weight, minlength=len(size)) for weight in weights]
    return np.stack([size, *sums, source], axis=1)


def mean_pass_at_k(graded: np.ndarray, right: np.ndarray, k: int) -> tuple[float, float] | None:
    """pass@k over groups, and its standard error; NaN for a single group.

    None where no group has k graded samples; groups with fewer are left out. The arguments are those of `pass_at_k`.

    >>> mean_pass_at_k(np.array([4, 4]), np.array([1, 1]), 2)
    (0.5, 0.0)
    """
    chances = pass_at_k(graded, right, k)
    chances = chances[~np.isnan(chances)]
    if not len(chances):
        return None
    error = np.std(chances, ddof=1) / np.sqrt(len(chances)) if len(chances) > 1 else np.nan
    return float(np.mean(chances)), float(error)


def describe(gathered: Gathered) -> dict[str, Any]:
    """The statistics by name, as `primecli stats --json` prints them; those that no shard has columns for are left out.

    accuracy: mean outcome reward of the graded responses, as `verify` and `filter` have it. A sample is right in pass@k
    where its outcome reward is 1.
    """
    described: dict[str, Any] = {
        "rollouts": len(gathered.lengths),
        "groups": len(gathered.groups),
        "tokens": int(gathered.lengths.sum()),
    }
    if gathered.verified.any():
        graded = ~np.isnan(gathered.outcomes)
        described["ungraded"] = int((gathered.verified & ~graded).sum())
        if graded.any() and len(gathered.groups):
            described["accuracy"] = float(gathered.outcomes[graded].mean(dtype=np.float64))
            described |= _by_group(gathered.groups)
    verdicts = gathered.verdicts[gathered.verdicts != NONE]
    if len(verdicts):
        counts = np.bincount(verdicts, minlength=len(gathered.verdict_names)).tolist()
        named = sorted(zip(gathered.verdict_names, counts, strict=True), key=lambda item: -item[1])
        described["verdicts"] = {name: count for name, count in named if count}
    truncated = gathered.truncated[gathered.truncated != NONE]
    if len(truncated):
        described["truncated"] = float(truncated.mean())
    described["length"] = quantiles(gathered.lengths)
    if not np.isnan(gathered.scores).all():
        described["process_reward"] = quantiles(gathered.scores)
        for name, which in (("right", gathered.outcomes >= 1), ("wrong", gathered.outcomes < 1)):
            if not np.isnan(gathered.scores[which]).all():
                described[f"process_reward_{name}"] = quantiles(gathered.scores[which])
    return described


def _by_group(groups: np.ndarray) -> dict[str, Any]:
    """pass@k, standard errors, and the shares of groups of which none, some and all samples are right.

    groups: as in `Gathered`.
    """
    groups = groups[groups[:, 1] > 0]
    graded, right, reward = groups[:, 1], groups[:, 2], groups[:, 3]
    described: dict[str, Any] = {}
    errors: dict[str, float] = {}
    if len(groups) > 1:  # samples of one prompt are alike, so the error is that of a mean over groups
        deviation = reward - graded * reward.sum() / graded.sum()
        variance = (deviation**2).sum() * len(groups) / (len(groups) - 1)
        errors["accuracy"] = float(np.sqrt(variance) / graded.sum())
    for k in powers_up_to(int(graded.max())):
        estimate = mean_pass_at_k(graded, right, k)
        if estimate is not None:
            described[f"pass@{k}"], error = estimate
            if not np.isnan(error):
                errors[f"pass@{k}"] = error
    described["standard_errors"] = errors
    none_right, all_right = right == 0, right == graded
    shares = {"none": none_right, "some": ~none_right & ~all_right, "all": all_right}
    return {**described, "groups_right": {name: float(share.mean()) for name, share in shares.items()}}


def quantiles(values: np.ndarray) -> dict[str, float]:
    """The mean, the least, QUANTILES and the greatest of the values that are not NaN."""
    values = values[~np.isnan(values)]
    described = {"mean": float(values.mean(dtype=np.float64)), "min": float(values.min())}
    for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
        described[f"p{round(100 * share):02d}"] = float(value)
    return {**described, "max": float(values.max())}
