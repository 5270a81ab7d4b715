"""What k of n samples of one prompt are worth: pass@k, maj@k and best-of-k, averaged over all choices of k samples.

All are exact: they sum over the subsets by counting them, and draw nothing. Pure NumPy; knows nothing of rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np


def pass_at_k(graded: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """(G,): the chance that at least one of k samples of a prompt is right, 1 - C(n-c, k) / C(n, k).

    The unbiased estimate of Chen et al. (arXiv 2107.03374). NaN for a prompt with fewer than k samples.

    graded, right: (G,), the samples of each prompt and how many of them are right, n and c.

    >>> pass_at_k(np.array([4, 4, 1]), np.array([1, 4, 1]), 2)
    array([0.5, 1. , nan])
    """
    n, c = graded.astype(np.float64), right.astype(np.float64)
    missed = np.where(n >= k, 1.0, np.nan)  # the chance that none of k samples is right
    for drawn in range(k):
        missed *= np.clip(n - c - drawn, 0, None) / np.maximum(n - drawn, 1)
    return np.asarray(1 - missed)


def majority_at_k(counts: Sequence[int], right: Sequence[float], without_answer: int = 0) -> np.ndarray:
    """(n,): for k from 1 to n, how often the most frequent answer among k of n samples is right.

    Of answers that are equally frequent, one is drawn. Samples without an answer have no vote; where none of the k has
    an answer, that is wrong.

    counts: how many samples gave each of the distinct answers. right: whether that answer is right, 0 or 1.
    without_answer: samples without one. n is the sum of the counts and of these.

    >>> majority_at_k([2, 1], [1, 0]).round(3)  # of "a", "a" and "b", of which "a" is right
    array([0.667, 0.667, 1.   ])
    """
    n = sum(counts) + without_answer
    size = np.arange(n + 1)
    chosen_right = np.zeros(n + 1)  # by k: subsets of k, each weighted by the share of its winners that are right
    for votes in range(1, max(counts, default=0) + 1):  # that the winners have
        most = sum(count >= votes for count in counts)  # winners that there can be
        # (winners, k): the subsets in which no answer has more than `votes`, and in how many, summed over the winners,
        # a winner is right
        subsets, rights = np.zeros((most + 1, n + 1)), np.zeros((most + 1, n + 1))
        subsets[0, : without_answer + 1] = [comb(without_answer, drawn) for drawn in range(without_answer + 1)]
        for count, is_right in zip(counts, right, strict=True):
            fewer = np.array([comb(count, drawn) for drawn in range(min(count, votes - 1) + 1)], dtype=np.float64)
            before = subsets, rights
            subsets, rights = (_convolved(values, fewer) for values in before)
            if count >= votes:
                wins = comb(count, votes)
                subsets[1:, votes:] += wins * before[0][:-1, : n + 1 - votes]
                rights[1:, votes:] += wins * (before[1] + is_right * before[0])[:-1, : n + 1 - votes]
        chosen_right += (rights[1:] / np.arange(1, most + 1)[:, None]).sum(0)
    return np.asarray((chosen_right / [comb(n, k) for k in size])[1:])


def _convolved(rows: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Each row as a polynomial times `factor`, cut to the row's length."""
    width = rows.shape[1]
    product = np.zeros_like(rows)
    for power, value in enumerate(factor):
        product[:, power:] += value * rows[:, : width - power]
    return product


def best_of_k(scores: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """(n,): for k from 1 to n, the mean outcome of the sample that scores highest among k of n.

    Of samples that score the same, one is drawn. scores, outcomes: (n,).

    >>> best_of_k(np.array([0.3, 0.1, 0.2]), np.array([1.0, 0.0, 0.0]))
    array([0.33333333, 0.66666667, 1.        ])
    """
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    _, starts = np.unique(-scores[order], return_index=True)  # of each run of equal scores, the highest first
    ends = np.append(starts[1:], n)
    means = np.add.reduceat(outcomes[order], starts) / (ends - starts)
    best = np.zeros(n)
    for k in range(1, n + 1):
        subsets = comb(n, k)
        # the best of a subset is in a run if none is before it and not all are behind it
        chances = [(comb(n - start, k) - comb(n - end, k)) / subsets for start, end in zip(starts, ends, strict=True)]
        best[k - 1] = np.dot(chances, means)
    return best


def weighted_majority(answers: Sequence[int | None], weights: np.ndarray, right: Sequence[float]) -> float:
    """Whether the answer with the largest summed weight is right; of equal ones, the share that is.

    answers: (n,), a number for each distinct answer, None without one. weights: (n,), not negative, such as
    sigmoid(score). right: by number, whether that answer is right, 0 or 1. 0.0 where no sample has an answer.

    >>> weighted_majority([0, 1, 1], np.array([0.9, 0.4, 0.6]), [0.0, 1.0])
    1.0
    """
    sums = np.zeros(len(right))
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            sums[answer] += weight
    present = sorted({answer for answer in answers if answer is not None})
    if not present:
        return 0.0
    largest = max(sums[answer] for answer in present)
    return float(np.mean([right[answer] for answer in present if sums[answer] == largest]))


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4, … up to `most`, and `most` itself: the k to show of many.

    >>> powers_up_to(6), powers_up_to(0)
    ([1, 2, 4, 6], [])
    """
    powers = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return powers if not most or powers[-1] == most else [*powers, most]
