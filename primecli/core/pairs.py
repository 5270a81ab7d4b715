"""Pairs of a better and a worse response of one group: how many of them scores rank correctly.

NumPy alone, so that whoever counts pairs need not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COMPARED_AT_ONCE = 1_000_000  # pairs of responses in one array: bounds memory to tens of megabytes


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Pairs of a better and a worse response of one group, counted by group.

    correct: (G,) float64, pairs whose better response has the higher score; ties count half.
    pairs: (G,) float64, all pairs.
    """

    correct: np.ndarray
    pairs: np.ndarray

    def accuracy(self) -> float | None:
        """The share of all pairs that are ranked correctly; None where there is no pair."""
        total = self.pairs.sum()
        return float(self.correct.sum() / total) if total > 0 else None


def count_pairs(scores: np.ndarray, outcomes: np.ndarray, group_index: np.ndarray) -> PairCounts:
    """How many pairs of a better and a worse response of one group the scores rank correctly; ties count half.

    scores, outcomes: (B,); group_index: (B,), integers. The counts are in the order of these integers, G of them.

    >>> count_pairs(np.array([2.0, 1.0, 3.0]), np.array([1.0, 0.0, 0.0]), np.array([0, 0, 0])).accuracy()
    0.5
    """
    _, index, sizes = np.unique(group_index, return_inverse=True, return_counts=True)
    correct, pairs = np.zeros(len(sizes)), np.zeros(len(sizes))
    rows = np.argsort(index, kind="stable")  # (B,), group by group
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes):
        of_size = np.flatnonzero(sizes == size)
        for groups in np.array_split(of_size, max(len(of_size) * size * size // COMPARED_AT_ONCE, 1)):
            members = rows[starts[groups][:, None] + np.arange(size)]  # (groups, size)
            score, outcome = scores[members], outcomes[members]
            better = outcome[:, :, None] > outcome[:, None, :]  # (groups, size, size)
            with np.errstate(invalid="ignore"):  # scores that are not finite give NaN
                lead = np.sign(score[:, :, None] - score[:, None, :])
            correct[groups] = (better * (1 + lead) / 2).sum((1, 2))
            pairs[groups] = better.sum((1, 2))
    return PairCounts(correct, pairs)
