"""Advantage estimators: `primecli compute-advantages --estimator`."""

from __future__ import annotations

from torch import Tensor

from primecli.core.advantages import Centered


def median(outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Centered:
    """Rewards minus their group's median, which a few responses with extreme rewards do not move.

    outcome_rewards: (B,); process_rewards: (B, T); reward_mask: (B, T) bool, True where there is a process reward;
    group_index: (B,) int64. Returns the rewards minus their baseline, which primecli then sums and whitens.

    >>> import torch
    >>> nothing = torch.zeros(3, 1)
    >>> median(torch.tensor([1.0, 0.0, 0.0]), nothing, nothing > 0, torch.tensor([0, 0, 0])).outcome
    tensor([1., 0., 0.])
    """
    outcome, process = outcome_rewards.clone(), process_rewards.clone()
    for group in range(int(group_index.max()) + 1):
        rows = group_index == group
        outcome[rows] -= outcome_rewards[rows].median()
        rewarded = reward_mask & rows[:, None]
        if rewarded.any():
            process[rewarded] -= process_rewards[rewarded].median()
    return Centered(outcome, process)
