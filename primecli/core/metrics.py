"""Metrics to watch: how well a PRM ranks and predicts, how far apart two policies are, how good a critic is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from primecli.core.losses import group_rows

CALIBRATION_BINS = 10  # few enough that the responses of one batch fill them


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Pairs of a better and a worse response of one group, counted by group.

    correct: (G,) float64, pairs whose better response has the higher score; a tie counts half.
    pairs: (G,) float64, all pairs.
    """

    correct: Tensor
    pairs: Tensor

    def accuracy(self) -> float | None:
        """The share of all pairs that are ranked correctly; None where there are no pairs."""
        return float(self.correct.sum() / self.pairs.sum()) if self.pairs.sum() > 0 else None

    def mean_over_groups(self, without_pairs: float = 0.5) -> float:
        """The mean of the accuracies of the groups; a group without pairs counts as `without_pairs`."""
        accuracies = torch.where(self.pairs > 0, self.correct / self.pairs.clamp(min=1e-12), without_pairs)
        return float(accuracies.mean())


def count_pairs(
    scores: Tensor, outcome_rewards: Tensor, group_index: Tensor, *, by_difference: bool = False
) -> PairCounts:
    """How many pairs of a better and a worse response of one group the scores rank correctly; ties count half.

    Each pair counts 1, or the difference of its outcome rewards with `by_difference`.

    scores, outcome_rewards: (B,); group_index: (B,) int64.

    >>> count_pairs(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0])).accuracy()
    0.5
    """
    correct, pairs = [], []
    for rows in group_rows(group_index):
        difference = (outcome_rewards[rows, None] - outcome_rewards[None, rows]).double().clamp(min=0)  # (n, n)
        weight = difference if by_difference else (difference > 0).double()
        ordered = (1 + torch.sign(scores[rows, None] - scores[None, rows]).double()) / 2
        correct.append((weight * ordered).sum())
        pairs.append(weight.sum())
    return PairCounts(torch.stack(correct), torch.stack(pairs))


def calibration_error(scores: Tensor, outcome_rewards: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of sigmoid(score): the mean over responses of |predicted - observed| of their bin.

    The bins have equal width over [0, 1]. scores, outcome_rewards: (B,). Guo et al. (arXiv 1706.04599).

    >>> round(calibration_error(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])), 6)
    0.5
    """
    predicted = scores.double().sigmoid()
    bin_index = (predicted * bins).long().clamp(max=bins - 1)
    gaps = predicted.new_zeros(bins).index_add(0, bin_index, predicted - outcome_rewards.double())
    return float(gaps.abs().sum() / len(scores))


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(returns - values) / var(returns): 1 for a perfect critic, 0 for a constant one.

    values, returns: (N,). NaN where the returns do not vary.

    >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    0.75
    """
    spread = returns.double().var(correction=0)
    residual = (returns.double() - values.double()).var(correction=0)
    return float(1 - residual / spread) if spread > 0 else float("nan")


def effective_sample_size(log_weights: Tensor) -> float:
    """Kish's effective sample size of importance weights, divided by their number, so between 0 and 1.

    It is (sum w)^2 / (N * sum w^2): 1 where all weights are equal, 1/N where one outweighs all others.
    log_weights: (N,), nats; adding a constant to all of them changes nothing.
    Kish, Survey Sampling (1965), section 11.7.

    >>> effective_sample_size(torch.tensor([0.0, 0.0, 0.0, 0.0]))
    1.0
    >>> round(effective_sample_size(torch.tensor([0.0, 100.0])), 6)
    0.5
    """
    exact = log_weights.double()
    log_share = 2 * torch.logsumexp(exact, 0) - torch.logsumexp(2 * exact, 0) - math.log(len(exact))
    return min(1.0, float(log_share.exp()))


def variance_share(part: Tensor, total: Tensor) -> float:
    """The share of the variance of a total that one of its summands explains: cov(part, total) / var(total).

    The shares of all summands add up to 1; a single one may be negative or above 1. part, total: (N,). NaN where the
    total does not vary.

    >>> variance_share(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))
    0.25
    """
    centred = total.double() - total.double().mean()
    spread = centred.square().sum()
    return float((part.double() * centred).sum() / spread) if spread > 0 else float("nan")
