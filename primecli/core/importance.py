"""Importance weights between the distribution that sampled and the one that is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
