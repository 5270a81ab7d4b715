"""What a directory of shards comes to: accuracy, pass@k, verdicts, lengths and rewards, by data source, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from primecli import schema, shards
from primecli.inputs import Shard

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ALL = "all"


@dataclass(slots=True)
class Gathered:
    """Numbers of the responses of one data source: a few bytes each, no token lists.

    outcomes: NaN where a response was not graded. groups: [samples, graded samples, right samples] of each group.
    """

    outcomes: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    truncated: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    groups: list[np.ndarray] = field(default_factory=list)


def gather(parts: Iterable[Shard]) -> dict[str, Gathered]:
    """Reads the columns that there are, shard by shard; by data source, and `all` of them."""
    found: dict[str, Gathered] = {ALL: Gathered()}
    optional = (
        schema.DATA_SOURCE,
        schema.OUTCOME_REWARD,
        schema.VERDICT,
        schema.FINISH_REASON,
        schema.PROCESS_REWARDS,
    )
    for part in parts:
        needs = [schema.GROUP_ID, schema.RESPONSE_IDS]
        shards.require_columns(part.path, part.footer.columns, needs)
        table = shards.read_table(part.path, [*needs, *(name for name in optional if name in part.footer.columns)])
        sources = np.array([None] * table.num_rows, dtype=object)
        if schema.DATA_SOURCE in table.column_names:
            sources = np.array(table[schema.DATA_SOURCE].to_pylist(), dtype=object)
        rows = _rows(table)
        names = sorted({str(source) for source in sources if source is not None})
        for name in names:
            _add(found.setdefault(name, Gathered()), rows, sources == name)
        _add(found[ALL], rows, np.ones(table.num_rows, dtype=bool))
    if len(found) == 2:  # one source is all there is
        del found[next(name for name in found if name != ALL)]
    return found


def _rows(table: Any) -> dict[str, np.ndarray]:
    _, lengths = shards.flat_column(table, schema.RESPONSE_IDS)
    rows = {
        "lengths": lengths,
        "group": np.unique(np.asarray(table[schema.GROUP_ID].to_pylist()), return_inverse=True)[1],
    }
    if schema.OUTCOME_REWARD in table.column_names:
        rows["outcomes"] = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    if schema.VERDICT in table.column_names:
        rows["verdicts"] = np.asarray(table[schema.VERDICT].to_pylist(), dtype=object)
    if schema.FINISH_REASON in table.column_names:
        rows["truncated"] = np.asarray(table[schema.FINISH_REASON].to_pylist()) == "length"
    if schema.PROCESS_REWARDS in table.column_names:
        rewards, counts = shards.flat_column(table, schema.PROCESS_REWARDS)
        sums = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
        ends = np.cumsum(counts)
        rows["scores"] = sums[ends] - sums[ends - counts]
    return rows


def _add(to: Gathered, rows: dict[str, np.ndarray], which: np.ndarray) -> None:
    to.lengths.append(rows["lengths"][which])
    if "scores" in rows:
        to.scores.append(rows["scores"][which])
    if "truncated" in rows:
        to.truncated += int(rows["truncated"][which].sum())
    for verdict in rows.get("verdicts", np.array([], dtype=object))[which if "verdicts" in rows else slice(0)]:
        to.verdicts[str(verdict)] = to.verdicts.get(str(verdict), 0) + 1
    group = rows["group"][which]
    size = np.bincount(group)
    columns = [size, np.zeros_like(size), np.zeros_like(size)]
    if "outcomes" in rows:
        outcomes = rows["outcomes"][which]
        to.outcomes.append(outcomes)
        columns = [
            size,
            np.bincount(group, weights=~np.isnan(outcomes), minlength=len(size)),
            np.bincount(group, weights=outcomes >= 1, minlength=len(size)),
        ]
    to.groups.append(np.stack(columns, axis=1)[size > 0].astype(np.int64))


def pass_at_k(graded: np.ndarray, right: np.ndarray, k: int) -> float | None:
    """The chance that one of k samples of a prompt is right: the mean over groups of 1 - C(n-c, k) / C(n, k).

    Unbiased (Chen et al., arXiv 2107.03374). graded, right: (G,), n and c of each group; groups with fewer than k
    graded samples are left out. None where no group has so many.

    >>> pass_at_k(np.array([4]), np.array([1]), 2)
    0.5
    """
    enough = graded >= k
    if not enough.any():
        return None
    n, c = graded[enough].astype(np.float64), right[enough].astype(np.float64)
    missed = np.ones(len(n))
    for drawn in range(k):
        missed *= np.clip(n - c - drawn, 0, None) / (n - drawn)
    return float(np.mean(1 - missed))


def describe(found: Gathered) -> dict[str, Any]:
    """The numbers of one data source, by name; those without anything to say are left out."""
    lengths = np.concatenate(found.lengths)
    groups = np.concatenate(found.groups)
    described: dict[str, Any] = {"responses": len(lengths), "groups": len(groups), "tokens": int(lengths.sum())}
    if found.outcomes:
        outcomes = np.concatenate(found.outcomes)
        graded = outcomes[~np.isnan(outcomes)]
        described["ungraded"] = len(outcomes) - len(graded)
        if len(graded):
            described["accuracy"] = float((graded >= 1).mean())
            described["outcome_reward"] = float(graded.mean())
        for k in _powers(int(groups[:, 1].max(initial=0))):
            value = pass_at_k(groups[:, 1], groups[:, 2], k)
            if value is not None:
                described[f"pass@{k}"] = value
    if found.verdicts:
        described["verdicts"] = dict(sorted(found.verdicts.items(), key=lambda item: -item[1]))
    described["truncated"] = found.truncated / len(lengths)
    described["length"] = quantiles(lengths)
    if found.scores:
        scores = np.concatenate(found.scores)
        described["process_reward"] = quantiles(scores)
        if found.outcomes and len(scores) == len(outcomes):
            for name, which in (("right", outcomes >= 1), ("wrong", outcomes < 1)):
                if which.any():
                    described[f"process_reward_{name}"] = quantiles(scores[which])
    return described


def _powers(most: int) -> Sequence[int]:
    """1, 2, 4, … up to `most`, and `most` itself."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return powers if not most or powers[-1] == most else [*powers, most]


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Mean, least, greatest and the quantiles between."""
    found = {"mean": float(values.mean()), "min": float(values.min())}
    for share, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
        found[f"p{round(100 * share):02d}"] = float(value)
    return {**found, "max": float(values.max())}
