"""How well a PRM finds the first wrong step, as ProcessBench asks (arXiv 2412.06559): F1, its parts, its threshold.

A step is judged wrong where its score is below a threshold; the first such step is the prediction, and -1 where there
is none. F1 is the harmonic mean of two shares: of the responses with a wrong step, those whose first one is found
exactly; of the others, those that pass. Pure NumPy; knows nothing of rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from primecli.analysis.step_scores import By


@dataclass(frozen=True, slots=True)
class LabelledSteps:
    """A response whose first wrong step is known.

    source: its data source. prompt: of that source; responses to one prompt are resampled together.
    first_wrong: the index of the first wrong step, -1 for none.
    rewards: (S,) float64, the process rewards of each step, summed over its tokens.
    tokens: (S,) how many tokens each step has.
    """

    source: str
    prompt: str
    first_wrong: int
    rewards: np.ndarray
    tokens: np.ndarray

    def scores(self, by: By) -> np.ndarray:
        """(S,): the score of each step."""
        whole = by in (By.prefix, By.prefix_mean)
        rewards = np.cumsum(self.rewards) if whole else self.rewards
        if by in (By.prefix, By.step):
            return rewards
        return np.asarray(rewards / (np.cumsum(self.tokens) if whole else self.tokens))

    def outcome_scores(self) -> np.ndarray:
        """(S,): the scores of an outcome model, which can say of the whole response alone that it is wrong: infinite up
        to the last step."""
        scores = np.full(len(self.rewards), np.inf)
        scores[-1] = self.rewards.sum()
        return scores

    @property
    def last_is_lowest(self) -> bool:
        """Whether no step has a lower reward than the last, and all others a higher one."""
        return bool((self.rewards[:-1] > self.rewards[-1]).all())


def first_below(scores: np.ndarray, threshold: float) -> int:
    """The index of the first step whose score is below the threshold; -1 where there is none.

    >>> first_below(np.array([0.5, -1.0, -2.0]), 0.0)
    1
    """
    below = np.flatnonzero(scores < threshold)
    return int(below[0]) if len(below) else -1


def harmonic_mean(first: float, second: float) -> float:
    """The harmonic mean of two shares; 0 where both are.

    >>> harmonic_mean(0.5, 1.0), harmonic_mean(0.0, 0.0)
    (0.6666666666666666, 0.0)
    """
    return 2 * first * second / (first + second) if first + second > 0 else 0.0


def chance_f1(steps: np.ndarray) -> float:
    """The best F1 without looking at the response: with some probability p one of its steps at random, else none.

    Then wrong ones are found with the chance p a, a being the mean of 1 / S, and right ones pass with 1 - p. The best p
    is 1 / (1 + sqrt(a)), and F1 is 2 a / (1 + sqrt(a))^2.

    steps: (E,), the number of steps S of each response that has a wrong one.

    >>> chance_f1(np.array([1, 1])), round(chance_f1(np.array([4, 4])), 3)
    (0.5, 0.222)
    """
    share = float((1 / steps).mean())
    return 2 * share / (1 + math.sqrt(share)) ** 2


def best_threshold(
    scores: Sequence[np.ndarray], first_wrong: Sequence[int], candidates: np.ndarray | None = None
) -> tuple[float, float]:
    """The threshold with the highest F1, and that F1; the lowest of equally good ones.

    scores: (S,) of each response. first_wrong: of each, -1 for none. candidates: the thresholds to choose from, in
    ascending order; None for all. Of all those that predict the same, it is the one in the middle.

    Raises ValueError unless some responses have a wrong step and some have none.

    >>> best_threshold([np.array([3.0, 1.0]), np.array([2.0])], [1, -1])
    (1.5, 1.0)
    """
    labels = np.array(first_wrong)
    kinds = labels >= 0  # (R,) bool
    if kinds.all() or not kinds.any():
        raise ValueError("a threshold is found on responses with a wrong step and responses without")
    # a response is predicted rightly for the thresholds in (low, high], if anywhere
    spans = [_span(one, label) for one, label in zip(scores, first_wrong, strict=True)]
    low, high = (np.array([span[end] for span in spans]) for end in (0, 1))
    finite = np.concatenate([low, high])
    edges = np.unique(finite[np.isfinite(finite)])
    thresholds = _between(edges) if candidates is None else candidates  # (C,), ascending
    shares = []
    for kind in (kinds, ~kinds):
        change = np.zeros(len(thresholds) + 1)  # in the number of right predictions, from one threshold to the next
        for bound, sign in ((low, 1), (high, -1)):
            np.add.at(change, np.searchsorted(thresholds, bound[kind], side="right"), sign)
        shares.append(np.cumsum(change)[:-1] / kind.sum())
    f1 = [harmonic_mean(*pair) for pair in zip(*shares, strict=True)]
    best = int(np.argmax(f1))
    return float(thresholds[best]), f1[best]


def _span(scores: np.ndarray, first_wrong: int) -> tuple[float, float]:
    """The thresholds (low, high] for which the prediction is `first_wrong`; low >= high where there are none."""
    if first_wrong < 0:
        return -np.inf, float(scores.min())
    low, high = float(scores[first_wrong]), float(scores[:first_wrong].min(initial=np.inf))
    return low, max(low, high)


def _between(edges: np.ndarray) -> np.ndarray:
    """One threshold for each way to predict: at most the lowest edge, between every two, and above the highest."""
    middles = edges[:-1] + (edges[1:] - edges[:-1]) / 2
    middles = np.where(middles > edges[:-1], middles, edges[1:])  # where rounding leaves no number between
    return np.concatenate([edges[:1], middles, edges[-1:] + 1])
