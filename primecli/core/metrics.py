"""Metrics to watch: how well a PRM ranks and predicts, how far apart two policies are, how good a critic is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from primecli.core.losses import group_rows

CALIBRATION_BINS = 10  # few enough that the responses of one batch fill them


def weighted_pair_accuracy(
    scores: Tensor, outcome_rewards: Tensor, group_index: Tensor, *, without_pairs: float = 0.5
) -> float:
    """The mean over groups of the share of their pairs that the scores rank correctly; ties count half.

    A pair is of a better and a worse response, and weighs the difference of their outcome rewards; `core.pairs` counts
    each pair once instead. A group without pairs counts `without_pairs`.

    scores, outcome_rewards: (B,); group_index: (B,) int64.

    >>> weighted_pair_accuracy(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    1.0
    """
    correct, pairs = [], []
    for rows in group_rows(group_index):
        weight = (outcome_rewards[rows, None] - outcome_rewards[None, rows]).double().clamp(min=0)  # (n, n)
        ranked = (1 + torch.sign(scores[rows, None] - scores[None, rows]).double()) / 2
        correct.append((weight * ranked).sum())
        pairs.append(weight.sum())
    total = torch.stack(pairs)  # (G,)
    accuracies = torch.where(total > 0, torch.stack(correct) / total.clamp(min=1e-12), without_pairs)
    return float(accuracies.mean())


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


def separation(scores: Tensor, outcome_rewards: Tensor) -> float | None:
    """How far the mean scores of right and wrong responses are apart, in standard deviations within each kind.

    Cohen's d: the difference of the means over the pooled standard deviation. Multiplying the scores by a constant
    changes nothing, so PRMs of different beta and objective can be compared.

    scores: (B,); outcome_rewards: (B,), a response above 0.5 is right. None if there are only right or only wrong ones,
    or if the scores within each kind do not vary. Cohen, Statistical Power Analysis (1988), section 2.5.

    >>> round(separation(torch.tensor([3.0, 5.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])), 4)
    2.1213
    """
    exact = scores.double()
    kinds = exact[outcome_rewards > 0.5], exact[outcome_rewards <= 0.5]
    if not all(len(kind) for kind in kinds) or len(exact) < 3:
        return None
    spread = sum(float((kind - kind.mean()).square().sum()) for kind in kinds) / (len(exact) - 2)
    return float(kinds[0].mean() - kinds[1].mean()) / math.sqrt(spread) if spread > 0 else None


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
