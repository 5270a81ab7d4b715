"""Losses of the policy: `primecli update-policy --policy-loss`."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """PPO's surrogate with the ratio bent by a tanh in place of the clip, so that its gradient fades out.

    logprobs, old_logprobs: (N,) nats, row after row; advantages: (N,); lengths: (B,), tokens of each response.
    clip_low, clip_high: how far the ratio can fall below 1, and rise above it.
    Returns the term of each token, (N,), which primecli weights and sums; and which of them went beyond a bound.

    >>> zero = torch.zeros(2)
    >>> terms, beyond = smooth(torch.tensor([0.0, 9.0]), zero, zero + 1, zero, clip_low=0.2, clip_high=0.2)
    >>> terms, beyond
    (tensor([-1.0000, -1.2000]), tensor([False,  True]))
    """
    moved = (logprobs - old_logprobs).exp() - 1
    bound = torch.where(moved > 0, clip_high, clip_low)
    return -advantages * (1 + bound * torch.tanh(moved / bound)), moved.abs() > bound
