"""Losses of the policy and of the process reward model. Each states its denominator.

A loss is a sum over what it is given divided by `denominator`, which is that of the whole mini-batch. So
the gradients of the micro-batches of a mini-batch add up to the mini-batch's own, however it is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside any clip, and its square is still a float32


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A policy loss and what to watch about it; the metrics are sums over tokens, without gradient.

    loss: (), the sum over tokens divided by the denominator. clipped: tokens whose clipped term was the
    one taken. dual_clipped: tokens of negative advantage at the dual clip. kl: sum of old - new (k1, nats).
    """

    loss: Tensor
    clipped: Tensor
    dual_clipped: Tensor
    kl: Tensor


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    denominator: Tensor | float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate: -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), token-mean.

    With `dual_clip` c > 1, the term of a token with negative advantage is bounded by -c * A (arXiv 1912.09729).

    logprobs, old_logprobs, advantages: (B, T), nats for the first two; response_mask: (B, T).
    denominator: response tokens of the whole mini-batch. PPO (arXiv 1707.06347), equation 7.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = torch.maximum(plain, clipped)
    was_clipped = clipped > plain
    was_dual_clipped = torch.zeros_like(was_clipped)
    if dual_clip is not None:
        bound = -advantages * dual_clip
        was_dual_clipped = (advantages < 0) & (bound < per_token)
        per_token = torch.where(advantages < 0, torch.minimum(per_token, bound), per_token)
    return PolicyLoss(
        loss=(per_token * response_mask).sum() / denominator,
        clipped=(was_clipped & response_mask).sum(),
        dual_clipped=(was_dual_clipped & response_mask).sum(),
        kl=((old_logprobs - logprobs).detach() * response_mask).sum(),
    )


def prm_cross_entropy(scores: Tensor, outcome_rewards: Tensor, *, denominator: Tensor | float) -> Tensor:
    """Binary cross-entropy of sigmoid(score) against the outcome reward, which may be fractional.

    scores: (B,), sum over tokens of beta * (log p_phi - log p_ref); outcome_rewards: (B,), in [0, 1].
    denominator: responses of the whole mini-batch. Returns ().
    PRIME (arXiv 2502.01456), equation 4.

    >>> prm_cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), denominator=2)
    tensor(0.6931)
    """
    return F.binary_cross_entropy_with_logits(scores, outcome_rewards, reduction="sum") / denominator


def pair_accuracy(scores: Tensor, outcome_rewards: Tensor, group_index: Tensor) -> tuple[int, int]:
    """How many pairs of a better and a worse response of one group the scores order rightly, and of how many.

    scores, outcome_rewards: (B,); group_index: (B,) int64. A tie of scores is not ordered rightly.

    >>> pair_accuracy(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]))
    (1, 2)
    """
    right = pairs = 0
    order = torch.argsort(group_index, stable=True)
    sizes = torch.bincount(group_index)
    for rows in torch.split(order, sizes.tolist()):
        better = outcome_rewards[rows, None] > outcome_rewards[None, rows]  # (n, n)
        ordered = scores[rows, None] > scores[None, rows]
        pairs += int(better.sum())
        right += int((better & ordered).sum())
    return right, pairs
