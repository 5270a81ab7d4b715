"""Clip-Cov and KL-Cov: the few tokens that cost the policy its entropy, found by their covariance (arXiv 2505.22617).

The entropy falls fastest through tokens whose advantage is high where they are likely already. Both methods act on a
tiny share of a mini-batch's tokens; the statistics are those of the whole mini-batch, never of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def covariances(advantages: Tensor, logprobs: Tensor) -> Tensor:
    """What each token contributes to the covariance of advantage and log-probability: (A - mean A)(log p - mean log p).

    advantages, logprobs: (N,), all tokens of the mini-batch. Returns (N,), without gradient. Equation 10 of the paper.

    >>> covariances(torch.tensor([1.0, -1.0]), torch.tensor([-0.5, -1.5]))
    tensor([0.5000, 0.5000])
    """
    chances = logprobs.detach()
    return (advantages - advantages.mean()) * (chances - chances.mean())


def clip_cov(covariance: Tensor, clipped: Tensor, draws: Tensor, share: float, low: float, high: float) -> Tensor:
    """(N,) bool: True for the tokens that Clip-Cov leaves out of the loss.

    They are drawn from those whose covariance is between `low` and `high`, bounds excluded, and which the loss has not
    clipped already: `share` of the N tokens, but at least one.

    covariance: (N,), from `covariances`. clipped: (N,) bool. draws: (N,), a random number for each token; those with
    the smallest ones are drawn. Equation 11 of the paper.

    >>> clip_cov(torch.tensor([0.0, 2.0, 3.0, 9.0]), torch.tensor([False] * 4), torch.arange(4), 0.25, 1.0, 5.0)
    tensor([False,  True, False, False])
    """
    possible = (covariance > low) & (covariance < high) & ~clipped
    number = min(_number(share, len(covariance)), int(possible.sum()))
    order = torch.argsort(torch.where(possible, draws.double(), torch.inf), stable=True)
    return _marked(order[:number], len(covariance))


def kl_cov(covariance: Tensor, share: float) -> Tensor:
    """(N,) bool: True for the tokens that KL-Cov penalises, `share` of the N with the largest covariance; at least one.

    The penalty is on |log p - log p_old|. covariance: (N,), from `covariances`. Equation 12 of the paper.

    >>> kl_cov(torch.tensor([0.0, 3.0, 2.0]), 0.5)
    tensor([False,  True, False])
    """
    return _marked(torch.topk(covariance, _number(share, len(covariance))).indices, len(covariance))


def _number(share: float, tokens: int) -> int:
    return max(1, int(share * tokens))


def _marked(indices: Tensor, tokens: int) -> Tensor:
    marks = torch.zeros(tokens, dtype=torch.bool)
    marks[indices] = True
    return marks
