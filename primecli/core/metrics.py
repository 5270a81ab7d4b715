"""What to watch: how well a PRM orders and predicts, how far apart two policies are, how good a critic is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from primecli.core.losses import group_rows

CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Pairs of a better and a worse response of one group, counted by group.

    right: (G,) float64, pairs whose better response has the higher score; a tie counts half.
    pairs: (G,) float64, all pairs.
    """

    right: Tensor
    pairs: Tensor

    def accuracy(self) -> float | None:
        """The share of all pairs that are ordered rightly; None where there is no pair."""
        return float(self.right.sum() / self.pairs.sum()) if self.pairs.sum() > 0 else None

    def mean_over_groups(self, without_pairs: float = 0.5) -> float:
        """The mean of the groups' own accuracies; a group without pairs counts `without_pairs`."""
        accuracies = torch.where(self.pairs > 0, self.right / self.pairs.clamp(min=1e-12), without_pairs)
        return float(accuracies.mean())


def count_pairs(
    scores: Tensor, outcome_rewards: Tensor, group_index: Tensor, *, by_difference: bool = False
) -> PairCounts:
    """How many pairs of a better and a worse response of one group the scores order rightly; a tie counts half.

    A pair counts 1, or, with `by_difference`, the difference of its outcome rewards.

    scores, outcome_rewards: (B,); group_index: (B,) int64.

    >>> count_pairs(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0])).accuracy()
    0.5
    """
    right, pairs = [], []
    for rows in group_rows(group_index):
        difference = (outcome_rewards[rows, None] - outcome_rewards[None, rows]).double().clamp(min=0)  # (n, n)
        weight = difference if by_difference else (difference > 0).double()
        ordered = (1 + torch.sign(scores[rows, None] - scores[None, rows]).double()) / 2
        right.append((weight * ordered).sum())
        pairs.append(weight.sum())
    return PairCounts(torch.stack(right), torch.stack(pairs))


def calibration_error(scores: Tensor, outcome_rewards: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of sigmoid(score): the mean, over responses, of its bin's |predicted - observed|.

    Bins are of equal width over [0, 1]. scores, outcome_rewards: (B,). Guo et al. (arXiv 1706.04599).

    >>> round(calibration_error(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])), 6)
    0.5
    """
    predicted = scores.double().sigmoid()
    place = (predicted * bins).long().clamp(max=bins - 1)
    gaps = predicted.new_zeros(bins).index_add(0, place, predicted - outcome_rewards.double())
    return float(gaps.abs().sum() / len(scores))


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(returns - values) / var(returns): 1 for a perfect critic, 0 for a constant one; (N,), (N,).

    NaN where the returns do not vary.

    >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    0.75
    """
    spread = returns.double().var(correction=0)
    left = (returns.double() - values.double()).var(correction=0)
    return float(1 - left / spread) if spread > 0 else float("nan")


def effective_sample_size(log_weights: Tensor) -> float:
    """Kish's effective sample size of importance weights, as a share of their number, between 0 and 1.

    log_weights: (N,), nats; a common shift changes nothing. (sum w)^2 / (N * sum w^2): 1 where all weights are
    equal, 1/N where one outweighs all others. Kish, Survey Sampling (1965), section 11.7.

    >>> effective_sample_size(torch.tensor([0.0, 0.0, 0.0, 0.0]))
    1.0
    >>> round(effective_sample_size(torch.tensor([0.0, 100.0])), 6)
    0.5
    """
    exact = log_weights.double()
    log_share = 2 * torch.logsumexp(exact, 0) - torch.logsumexp(2 * exact, 0) - math.log(len(exact))
    return min(1.0, float(log_share.exp()))


def variance_share(part: Tensor, total: Tensor) -> float:
    """The share of the total's variance that a part of it makes: cov(part, total) / var(total); (N,), (N,).

    The shares of parts that add up to the total add up to 1; one may be negative, or above 1. NaN where the total
    does not vary.

    >>> variance_share(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))
    0.25
    """
    centred = total.double() - total.double().mean()
    spread = centred.square().sum()
    return float((part.double() * centred).sum() / spread) if spread > 0 else float("nan")
