"""What shards come to: accuracy, pass@k, verdicts, lengths and rewards, by data source, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from primecli.shards import parquet, schema
from primecli.shards.parquet import Shard
from primecli.shards.streaming import stream

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ALL = "all"
NONE = -1  # the code of a null, or of a column that a shard does not have


@dataclass(frozen=True, slots=True)
class Gathered:
    """Numbers of B responses in G groups, some thirty bytes a response.

    outcomes, scores: (B,), outcome reward and sum of process rewards, NaN where there is none. lengths: (B,), tokens.
    verified: (B,), whether the shard has been through `verify`. verdicts, sources: (B,), places in the lists of names,
    or NONE. truncated: (B,), 1 or 0, NONE where the shard does not say. groups: (G, 5), samples, graded samples, right
    samples (outcome reward 1), summed outcome reward and source of each group.
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
        which = self.sources == code
        rows = ("outcomes", "verified", "lengths", "scores", "verdicts", "sources", "truncated")
        return Gathered(
            **{column: getattr(self, column)[which] for column in rows},
            groups=self.groups[self.groups[:, 4] == code],
            verdict_names=self.verdict_names,
            source_names=self.source_names,
        )


class _Names:
    """Texts as small numbers, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def codes(self, column: Any) -> np.ndarray:
        """(B,) int64: the numbers of a column of texts; NONE for null."""
        encoded = column.combine_chunks().dictionary_encode()
        places = [self.places.setdefault(text, len(self.places)) for text in encoded.dictionary.to_pylist()]
        codes = encoded.indices.fill_null(NONE).to_numpy(zero_copy_only=False)
        numbers: np.ndarray = np.append(np.array(places, dtype=np.int64), NONE)[codes]
        return numbers


def gather(parts: Iterable[Shard]) -> Gathered:
    """Reads the columns that there are, a few thousand rows at a time."""
    verdicts, sources = _Names(), _Names()
    columns: dict[str, list[np.ndarray]] = {}
    groups: list[np.ndarray] = []
    for part in parts:
        names = _Names()  # a group stands in one shard
        numbers: list[np.ndarray] = []
        found: dict[str, list[np.ndarray]] = {}
        for table in _tables(part):
            numbers.append(names.codes(table[schema.GROUP_ID]))
            for name, values in _reduce(table, verdicts, sources).items():
                found.setdefault(name, []).append(values)
        rows = {name: np.concatenate(pieces) for name, pieces in found.items()}
        groups.append(_group_counts(np.concatenate(numbers), rows))
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    return Gathered(
        **{name: np.concatenate(pieces) for name, pieces in columns.items()},
        groups=np.concatenate(groups),
        verdict_names=tuple(verdicts.places),
        source_names=tuple(sources.places),
    )


def _tables(part: Shard) -> Iterable[Any]:
    present = part.footer.columns
    parquet.require_columns(part.path, present, [schema.GROUP_ID, schema.RESPONSE_IDS])
    # lengths are those of any list over the response: one that is read anyway saves reading another
    lists = schema.PROCESS_REWARDS if schema.PROCESS_REWARDS in present else schema.RESPONSE_IDS
    wanted = (schema.DATA_SOURCE, schema.OUTCOME_REWARD, schema.VERDICT, schema.FINISH_REASON)
    names = [schema.GROUP_ID, lists, *(name for name in wanted if name in present)]
    return (table for _, table in stream(part.path, names))


def _reduce(table: Any, verdicts: _Names, sources: _Names) -> dict[str, np.ndarray]:
    """One number a row, of each of Gathered's columns."""
    import pyarrow.compute as pc

    rows, present = table.num_rows, table.column_names
    nothing, nobody = np.full(rows, np.nan), np.full(rows, NONE)
    scores, outcomes, truncated = nothing, nothing, nobody
    if schema.PROCESS_REWARDS in present:
        scores, lengths = sums(table, schema.PROCESS_REWARDS)
    else:
        lengths = pc.list_value_length(table[schema.RESPONSE_IDS]).to_numpy()
    if schema.OUTCOME_REWARD in present:
        outcomes = table[schema.OUTCOME_REWARD].to_numpy()
    if schema.FINISH_REASON in present:
        truncated = pc.equal(table[schema.FINISH_REASON], "length").to_numpy()
    return {
        "outcomes": outcomes.astype(np.float32),
        "verified": np.full(rows, schema.OUTCOME_REWARD in present),
        "lengths": lengths.astype(np.int32),
        "scores": scores,
        "verdicts": (verdicts.codes(table[schema.VERDICT]) if schema.VERDICT in present else nobody).astype(np.int8),
        "sources": (sources.codes(table[schema.DATA_SOURCE]) if schema.DATA_SOURCE in present else nobody).astype(
            np.int32
        ),
        "truncated": truncated.astype(np.int8),
    }


def sums(table: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(B,) float64 and (B,): the sum of each row's list, and how long it is."""
    values, lengths = parquet.flat_column(table, name)
    totals = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.cumsum(lengths)
    return totals[ends] - totals[ends - lengths], lengths


def _group_counts(numbers: np.ndarray, rows: dict[str, np.ndarray]) -> np.ndarray:
    """(G, 5) float64: Gathered's `groups` of one shard. numbers: (B,), the group of each row."""
    outcomes = rows["outcomes"]
    size = np.bincount(numbers)
    source = np.full(len(size), NONE)
    source[numbers] = rows["sources"]
    weights = (~np.isnan(outcomes), outcomes >= 1, np.nan_to_num(outcomes))
    counted = [np.bincount(numbers, weights=weight, minlength=len(size)) for weight in weights]
    return np.stack([size, *counted, source], axis=1)


def pass_at_k(graded: np.ndarray, right: np.ndarray, k: int) -> tuple[float, float] | None:
    """The chance that one of k samples of a prompt is right, the mean over groups of 1 - C(n-c, k) / C(n, k), and its
    standard error over groups (NaN for one group).

    Unbiased (Chen et al., arXiv 2107.03374). graded, right: (G,), n and c of each group; groups with fewer than k
    graded samples are left out. None where no group has so many.

    >>> pass_at_k(np.array([4, 4]), np.array([1, 1]), 2)
    (0.5, 0.0)
    """
    enough = graded >= k
    if not enough.any():
        return None
    n, c = graded[enough].astype(np.float64), right[enough].astype(np.float64)
    missed = np.ones(len(n))
    for drawn in range(k):
        missed *= np.clip(n - c - drawn, 0, None) / (n - drawn)
    error = np.std(missed, ddof=1) / np.sqrt(len(missed)) if len(missed) > 1 else np.nan
    return float(np.mean(1 - missed)), float(error)


def describe(found: Gathered) -> dict[str, Any]:
    """The numbers by name; those without anything to say are left out.

    accuracy: mean outcome reward of the graded responses, as `verify` and `filter` have it. A rollout is right in
    pass@k where its outcome reward is 1.
    """
    described: dict[str, Any] = {
        "rollouts": len(found.lengths),
        "groups": len(found.groups),
        "tokens": int(found.lengths.sum()),
    }
    if found.verified.any():
        graded = ~np.isnan(found.outcomes)
        described["ungraded"] = int((found.verified & ~graded).sum())
        if graded.any() and len(found.groups):
            described["accuracy"] = float(found.outcomes[graded].mean(dtype=np.float64))
            described |= _by_group(found.groups)
    if (found.verdicts != NONE).any():
        counts = np.bincount(found.verdicts[found.verdicts != NONE], minlength=len(found.verdict_names))
        named = sorted(zip(found.verdict_names, counts.tolist(), strict=True), key=lambda item: -item[1])
        described["verdicts"] = {name: count for name, count in named if count}
    if (found.truncated != NONE).any():
        described["truncated"] = float(found.truncated[found.truncated != NONE].mean())
    described["length"] = quantiles(found.lengths)
    if not np.isnan(found.scores).all():
        described["process_reward"] = quantiles(found.scores)
        for name, which in (("right", found.outcomes >= 1), ("wrong", found.outcomes < 1)):
            if not np.isnan(found.scores[which]).all():
                described[f"process_reward_{name}"] = quantiles(found.scores[which])
    return described


def _by_group(groups: np.ndarray) -> dict[str, Any]:
    """pass@k, standard errors, and the shares of groups of which none, some and all samples are right."""
    groups = groups[groups[:, 1] > 0]
    graded, right = groups[:, 1], groups[:, 2]
    described: dict[str, Any] = {}
    errors: dict[str, float] = {}
    if len(groups) > 1:  # samples of one prompt are alike: the error is that of a mean over groups
        off = groups[:, 3] - graded * groups[:, 3].sum() / graded.sum()
        errors["accuracy"] = float(np.sqrt((off**2).sum() * len(groups) / (len(groups) - 1)) / graded.sum())
    for k in _powers(int(graded.max())):
        value = pass_at_k(graded, right, k)
        if value is not None:
            described[f"pass@{k}"], error = value
            if not np.isnan(error):
                errors[f"pass@{k}"] = error
    described["standard_errors"] = errors
    none, every = right == 0, right == graded
    shares = {"none": none, "some": ~none & ~every, "all": every}
    return {**described, "groups_right": {name: float(share.mean()) for name, share in shares.items()}}


def _powers(most: int) -> Sequence[int]:
    """1, 2, 4, … up to `most`, and `most` itself."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return powers if not most or powers[-1] == most else [*powers, most]


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Mean, least, greatest and the quantiles between, of the values that are there."""
    values = values[~np.isnan(values)]
    found = {"mean": float(values.mean(dtype=np.float64)), "min": float(values.min())}
    for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
        found[f"p{round(100 * share):02d}"] = float(value)
    return {**found, "max": float(values.max())}
