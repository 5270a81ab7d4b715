"""Corrections for rollouts that another distribution sampled than the trainer's: another engine, or older weights.

They compare log-probabilities of the same tokens: log_ratio is the trainer's minus the sampler's. A ratio can be taken
by token or by response. Masks leave tokens out of the loss; the denominator of the loss stays what it was, so a batch
in which much is masked takes a smaller step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from primecli.core.losses import MAX_LOG_RATIO
from primecli.core.ragged import row_sums

LEVELS = ("token", "sequence", "geometric", "arithmetic")


def ratio_by(level: str, logprobs: Tensor, rollout_logprobs: Tensor, lengths: Tensor) -> Tensor:
    """The trainer's over the sampler's probability: of each token or, by response, the same for all of its tokens.

    token: of the token. sequence: of the whole response, the product of its tokens' ratios. geometric, arithmetic: the
    mean of its tokens' ratios, which does not grow or vanish with its length.

    logprobs, rollout_logprobs: (N,) nats, row after row; lengths: (B,), tokens, N in total. Returns (N,), without
    gradient, between exp(-20) and exp(20). Raises ValueError for an unknown level.

    >>> log_ratios, lengths = torch.tensor([1.0, 4.0, 2.0]).log(), torch.tensor([2, 1])
    >>> for level in ("sequence", "geometric", "arithmetic"):
    ...     print(ratio_by(level, log_ratios, torch.zeros(3), lengths))
    tensor([4., 4., 2.])
    tensor([2., 2., 2.])
    tensor([2.5000, 2.5000, 2.0000])
    """
    log_ratio = (logprobs - rollout_logprobs).detach()
    if level == "token":
        return _bounded(log_ratio).exp()
    if level == "sequence":
        rows = _bounded(row_sums(log_ratio, lengths)).exp()  # (B,)
    elif level == "geometric":
        rows = _bounded(row_sums(log_ratio, lengths) / lengths).exp()
    elif level == "arithmetic":
        rows = row_sums(_bounded(log_ratio).exp(), lengths) / lengths
    else:
        raise ValueError(f"the level is {level!r}; it must be one of {', '.join(LEVELS)}")
    return rows.repeat_interleave(lengths)


def truncated(ratio: Tensor, low: float = 0.0, high: float = math.inf) -> Tensor:
    """Truncated importance weights: the ratio of `ratio_by`, held between two bounds.

    Multiplied with the advantages, they correct the gradient for the sampler, with bounded variance. Truncated
    importance sampling (Ionides, 2008).

    >>> truncated(torch.tensor([0.1, 1.0, 5.0]), 0.5, 2.0)
    tensor([0.5000, 1.0000, 2.0000])
    """
    return ratio.clamp(min=low, max=high)


def within(ratio: Tensor, low: float, high: float) -> Tensor:
    """Bool: where the ratio of `ratio_by` is within the band, bounds included. What is outside is left out of the loss.

    With `truncated` as well, by token, this is IcePop (arXiv 2510.18855); alone, it is rejection sampling.

    >>> within(torch.tensor([0.1, 1.0, 5.0]), 0.5, 2.0)
    tensor([False,  True, False])
    """
    return (ratio >= low) & (ratio <= high)


def on_policy_enough(
    logprobs: Tensor, sampled_logprobs: Tensor, advantages: Tensor, lengths: Tensor, limit: float
) -> Tensor:
    """(N,) bool: False for tokens to leave out, with A < 0 in a response that the policy has left behind.

    That is one whose mean log-probability is lower now than when it was sampled by more than `limit` nats. What went
    wrong in a response that the policy would hardly sample any more teaches little, and its gradient is large; what
    went right is kept. Off-policy sequence mask of DeepSeek-V3.2 (arXiv 2512.02556), section 3.1.

    logprobs: (N,) nats, under the weights now. sampled_logprobs: (N,), the sampler's. advantages: (N,); lengths: (B,).

    >>> now, then = torch.tensor([-3.0, -3.0, -1.0]), torch.tensor([-1.0, -2.0, -1.0])
    >>> on_policy_enough(now, then, torch.tensor([-1.0, 1.0, -1.0]), torch.tensor([2, 1]), limit=1.0)
    tensor([False,  True,  True])
    """
    fell = row_sums((sampled_logprobs - logprobs).detach(), lengths) / lengths  # (B,)
    return (advantages >= 0) | (fell.repeat_interleave(lengths) <= limit)


def _bounded(log_ratio: Tensor) -> Tensor:
    return torch.clamp(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
