"""Objectives of the PRM: `primecli update-prm --loss`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

GAMMA = 2.0  # as in the paper


def focal(rewards: Tensor, response_mask: Tensor, outcome_rewards: Tensor, group_accuracy: Tensor) -> Tensor:
    """Cross-entropy in which a response counts less, the better its outcome is predicted (arXiv 1708.02002).

    rewards: (B, T), beta * (log p_prm - log p_ref); response_mask: (B, T) bool; outcome_rewards, group_accuracy: (B,).
    Returns (B,), the loss of each response.

    >>> import torch
    >>> focal(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), torch.ones(1), torch.ones(1))
    tensor([0.1733])
    """
    scores = (rewards * response_mask).sum(-1)  # (B,)
    losses = F.binary_cross_entropy_with_logits(scores, outcome_rewards, reduction="none")
    return (scores.sigmoid() - outcome_rewards).abs() ** GAMMA * losses
