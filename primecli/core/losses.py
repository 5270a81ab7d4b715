"""Losses of the policy, the critic and the process reward model. Each states its denominator.

In losses over tokens, each token's term is multiplied by its weight (`token_weights`). The weights are those of the
whole mini-batch, known before its first micro-batch, so the gradients of the micro-batches add up to that of the
mini-batch, however it is split. Losses over responses are sums divided by `denominator`, which is the whole
mini-batch's too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside any clip range, and its square still fits in float32
AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
KL_ESTIMATES = ("k1", "k2", "k3")


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A policy loss, and what to watch about it. Only the loss has a gradient.

    loss: (), the weighted sum of the tokens' terms.
    ratio: (...), new over old probability of each token or, in losses by response, of its response, such as 1.02.
    clipped_low: (...) bool, tokens held by the lower bound: with PPO, those with a negative advantage whose ratio fell
        below it.
    clipped_high: (...) bool, tokens held by the upper bound: with PPO, those with a positive advantage whose ratio rose
        above it.
    dual_clipped: (...) bool, tokens with a negative advantage whose term was bounded by the dual clip.
    """

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    dual_clipped: Tensor


def token_weights(lengths: Tensor, aggregation: str, *, tokens: int, responses: int) -> Tensor:
    """The weight of each response token's term in a loss.

    token-mean: 1 / tokens. seq-mean-token-sum: 1 / responses. seq-mean-token-mean: 1 / (responses * tokens of the
    token's own response).

    lengths: (B,), tokens of these responses. tokens, responses: those of the whole mini-batch. Returns (N,) float64,
    row after row. Raises ValueError for an unknown aggregation.

    >>> token_weights(torch.tensor([1, 2]), "seq-mean-token-mean", tokens=3, responses=2)
    tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    ones = torch.ones(len(lengths), dtype=torch.float64, device=lengths.device)
    if aggregation == "token-mean":
        weights = ones / tokens
    elif aggregation == "seq-mean-token-sum":
        weights = ones / responses
    elif aggregation == "seq-mean-token-mean":
        weights = ones / (responses * lengths)
    else:
        raise ValueError(f"aggregation is {aggregation!r}; it must be one of {', '.join(AGGREGATIONS)}")
    return weights.repeat_interleave(lengths)


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate: the weighted sum of -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A).

    With `dual_clip` c > 1, the term of a token with a negative advantage is bounded by -c * A (arXiv 1912.09729). A
    `clip_high` above `clip_low` is clip-higher (arXiv 2503.14476). Infinite bounds leave the plain surrogate, whose
    gradient at ratio 1 is that of REINFORCE.

    logprobs, old_logprobs (nats), advantages, weights (`token_weights`, 0 outside the response): same shape, (N,) or
    (B, T). PPO (arXiv 1707.06347), equation 7.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return clipped_surrogate(
        log_ratio.exp(), advantages, weights, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """`ppo_clip` for any ratio: (N,) or (B, T), with a gradient."""
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    terms = torch.maximum(plain, clipped)
    was_clipped = clipped > plain
    was_dual_clipped = torch.zeros_like(was_clipped)
    if dual_clip is not None:
        bound = -advantages * dual_clip
        was_dual_clipped = (advantages < 0) & (bound < terms)
        terms = torch.where(advantages < 0, torch.minimum(terms, bound), terms)
    inside = weights > 0
    return PolicyLoss(
        loss=(terms * weights.to(terms.dtype)).sum(),
        ratio=ratio.detach(),
        clipped_low=was_clipped & (advantages < 0) & inside,
        clipped_high=was_clipped & (advantages > 0) & inside,
        dual_clipped=was_dual_clipped & inside,
    )


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) from a token that the policy sampled (Schulman, 2020).

    With d = log p - log p_ref: k1 is d, unbiased and sometimes negative; k2 is d^2 / 2; k3 is exp(-d) - 1 + d, unbiased
    and never negative. As a loss, k2 has the gradient of the KL itself in expectation; k1 has none, and k3 has that of
    the reverse KL.

    logprobs, ref_logprobs: nats, same shape. Returns that shape. Raises ValueError for an unknown kind.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), "k2")
    tensor([0.1250])
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        bounded = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return torch.expm1(-bounded) + bounded
    raise ValueError(f"the KL estimate is {kind!r}; it must be one of {', '.join(KL_ESTIMATES)}")


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """A critic's loss, and what to watch about it. Only the loss has a gradient.

    loss: (), the weighted sum of the tokens' terms.
    clipped: (...) bool, tokens whose clipped term was the larger one and was used.
    """

    loss: Tensor
    clipped: Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip: float | None = 0.5
) -> ValueLoss:
    """Half the squared error of the values, or of the clipped values where that is larger.

    A clipped value stays within `clip` of the old one, which limits how far one batch moves the critic; None turns
    clipping off. values, old_values, returns, weights (`token_weights`): same shape, (N,) or (B, T).
    PPO with a critic, as in Stiennon et al. (arXiv 2009.01325) and later work.

    >>> one = torch.ones(1)
    >>> float(value_loss(2 * one, 0 * one, 2 * one, one, clip=1.0).loss)
    0.5
    >>> float(value_loss(2 * one, one, 4 * one, one).loss)
    3.125
    """
    errors = (values - returns).square()
    taken = torch.zeros_like(errors, dtype=torch.bool)
    if clip is not None:
        bounded = values.clamp(old_values - clip, old_values + clip)
        clipped_errors = (bounded - returns).square()
        taken = (clipped_errors > errors) & (weights > 0)
        errors = torch.maximum(errors, clipped_errors)
    return ValueLoss(0.5 * (errors * weights.to(errors.dtype)).sum(), taken)


def prm_cross_entropy(scores: Tensor, outcome_rewards: Tensor, *, denominator: Tensor | float) -> Tensor:
    """Binary cross-entropy of sigmoid(score) against the outcome reward, which may be fractional.

    scores: (B,), the sum over tokens of beta * (log p_phi - log p_ref). outcome_rewards: (B,), in [0, 1].
    denominator: responses in the whole mini-batch. Returns ().
    PRIME (arXiv 2502.01456), equation 4.

    >>> prm_cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), denominator=2)
    tensor(0.6931)
    """
    return F.binary_cross_entropy_with_logits(scores, outcome_rewards, reduction="sum") / denominator


def prm_dpo(scores: Tensor, outcome_rewards: Tensor, group_index: Tensor) -> Tensor:
    """-log sigmoid of how far the better response of a pair is ahead, for the pairs of each group.

    A pair is two responses of a group with different outcome rewards, however little they differ, and each of the two
    carries half of its loss. A group's loss is the mean over its pairs, times the number of its responses, so a group
    weighs by its size; one without a pair has none. A pair lifts one score by as much as it lowers the other, so a
    contribution that is equal in all responses of a group is neither rewarded nor punished, and the level of its scores
    is free.

    DPO (arXiv 2305.18290) on all pairs; Implicit PRM (arXiv 2412.01981) takes one wrong counterpart for each right
    response. Public code of PRIME instead holds every response against the mean score of its opponents: then the more
    frequent side weighs more, and equal contributions are pushed its way.

    scores, outcome_rewards: (B,); group_index: (B,) int64, whole groups. Returns (B,), the share of each response.

    >>> prm_dpo(torch.tensor([1.0, 1.0, 5.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
    tensor([0.6931, 0.6931, 0.0000])
    """
    shares = torch.zeros_like(scores)
    for rows in group_rows(group_index):
        own, outcomes = scores[rows], outcome_rewards[rows]
        side = torch.sign(outcomes[:, None] - outcomes).to(own.dtype)  # (n, n), 0 where the outcomes are equal
        halves = side.abs() * F.softplus(-side * (own[:, None] - own)) / 2
        pairs = side.abs().sum() / 2
        shares[rows] = halves.sum(-1) * (len(rows) / pairs.clamp(min=1))
    return shares


def group_rows(group_index: Tensor) -> tuple[Tensor, ...]:
    """The rows of each group: (B,) int64 to one (n,) int64 per group.

    >>> group_rows(torch.tensor([1, 0, 1]))
    (tensor([1]), tensor([0, 2]))
    """
    order = torch.argsort(group_index, stable=True)
    sizes = torch.bincount(group_index)
    return torch.split(order, sizes[sizes > 0].tolist())
