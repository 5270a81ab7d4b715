"""Advantage estimators over groups of responses to one prompt.

Every estimator combines two reward sources, each with its coefficient: the outcome reward of a response
(B,) and the process rewards of its tokens (B, T). Groups come as `group_index` (B,): the number, from 0,
of the group that a response belongs to. Rows of a group may stand anywhere in the batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from primecli.core.rewards import reward_to_go

WHITEN_EPSILON = 1e-8


class Estimator(Protocol):
    """Outcome and process rewards to unwhitened advantages, all of one batch."""

    def __call__(
        self,
        outcome_rewards: Tensor,
        process_rewards: Tensor,
        response_mask: Tensor,
        group_index: Tensor,
        *,
        outcome_coef: float = 1.0,
        process_coef: float = 1.0,
        gamma: float = 1.0,
        process_baseline: str = "paper",
    ) -> Tensor:
        """Advantages (B, T), 0 outside the mask."""
        ...


def group_sums(values: Tensor, group_index: Tensor) -> Tensor:
    """Each row's sum over its group.

    values: (B,); group_index: (B,) int64. Returns (B,).

    >>> group_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]))
    tensor([5., 2., 5.])
    """
    groups = int(group_index.max()) + 1 if group_index.numel() else 0
    sums = values.new_zeros(groups).index_add(0, group_index, values)
    return sums[group_index]


def mean_of_others(values: Tensor, group_index: Tensor) -> Tensor:
    """The leave-one-out baseline: the mean over the other rows of each row's group.

    values: (B,); group_index: (B,) int64. Returns (B,).
    Raises ValueError for a group of one row, which has no others.

    >>> mean_of_others(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]))
    tensor([0.0000, 0.5000, 0.5000])
    """
    sizes = group_sums(torch.ones_like(values), group_index)
    if bool((sizes < 2).any()):
        raise ValueError("a group has one response only; a leave-one-out baseline needs two or more")
    return (group_sums(values, group_index) - values) / (sizes - 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row under its mask: (B, T), (B, T) to (B,). A row without tokens has mean 0.

    >>> masked_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def rloo(
    outcome_rewards: Tensor,
    process_rewards: Tensor,
    response_mask: Tensor,
    group_index: Tensor,
    *,
    outcome_coef: float = 1.0,
    process_coef: float = 1.0,
    gamma: float = 1.0,
    process_baseline: str = "paper",
) -> Tensor:
    """REINFORCE with a leave-one-out baseline, for both reward sources, summed.

    A_t = process_coef * sum_{s >= t} gamma^(s-t) * (r_s - b_p) + outcome_coef * (r_o - b_o), where b_o is the
    mean outcome reward of the other responses of the group and b_p, with `process_baseline="paper"`, the
    mean over the others of their mean token reward. With `"recipe"` the centred reward is
    r_s * n/(n-1) - (sum of all n mean token rewards)/(n-1), as the first code and the verl port have it.

    outcome_rewards: (B,), in [0, 1]; process_rewards: (B, T); response_mask: (B, T); group_index: (B,) int64.
    Returns (B, T), 0 outside the mask. Raises ValueError for a group of one response or an unknown baseline.
    PRIME (arXiv 2502.01456), equation 5.

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> process = torch.tensor([[0.5, 0.1], [0.2, 0.0]])
    >>> rloo(torch.tensor([1.0, 0.0]), process, mask, torch.tensor([0, 0]))
    tensor([[ 1.2000,  0.9000],
            [-1.1000,  0.0000]])
    """
    outcome = outcome_rewards - mean_of_others(outcome_rewards, group_index)  # (B,)
    means = masked_mean(process_rewards, response_mask)  # (B,)
    if process_baseline == "paper":
        centred = process_rewards - mean_of_others(means, group_index)[:, None]  # (B, T)
    elif process_baseline == "recipe":
        size = group_sums(torch.ones_like(means), group_index)
        baseline = group_sums(means, group_index) / (size - 1)
        centred = process_rewards * (size / (size - 1))[:, None] - baseline[:, None]  # (B, T)
    else:
        raise ValueError(f"process_baseline is {process_baseline!r}; it is 'paper' or 'recipe'")
    process = reward_to_go(centred * response_mask, gamma)
    return (process_coef * process + outcome_coef * outcome[:, None]).masked_fill(~response_mask, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and (unbiased) variance 1 over all tokens under the mask, which is to be the whole batch.

    values: (B, T); mask: (B, T). Returns (B, T), 0 outside the mask. The epsilon 1e-8 stands inside the root.

    >>> whiten(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]))
    tensor([[-0.7071,  0.7071]])
    """
    under = values[mask]
    if under.numel() < 2:
        raise ValueError("whitening needs two tokens or more")
    variance, mean = torch.var_mean(under, correction=1)
    return (values - mean) * torch.rsqrt(variance + WHITEN_EPSILON) * mask


ESTIMATORS: dict[str, Estimator] = {
    "rloo": rloo,
}
