"""Advantage estimators over groups of responses to one prompt.

Every estimator handles the two sources of reward separately: the outcome reward of a response, (B,), and the process
rewards of its tokens, (B, T). It subtracts a baseline from each. `discounted`, or `gae` with a critic, then turns the
centred rewards into advantages, one part per source, so that one can still see what a token was credited for.

`group_index` (B,) holds the number, from 0, of the group that each response belongs to; the rows of a group may be
anywhere in the batch. `reward_mask` (B, T) is True where there are process rewards: on every response token, on the
last token of each step, or on the last token only.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from primecli.core.rewards import last_token, reward_to_go

WHITEN_EPSILON = 1e-8  # added to the variance before the root
GRPO_EPSILON = 1e-6  # added to a group's standard deviation, which is 0 where all its rewards are equal


class Centered(NamedTuple):
    """Rewards minus their baseline.

    outcome: (B,), one per response.
    process: (B, T), one per token; 0 outside the reward mask.
    """

    outcome: Tensor
    process: Tensor


class Parts(NamedTuple):
    """Advantages by the source of their reward; their sum is the advantage.

    outcome: (B, T), from the outcome rewards; 0 outside the response.
    process: (B, T), from the process rewards; 0 outside the response.
    """

    outcome: Tensor
    process: Tensor


class Estimator(Protocol):
    """Subtracts a baseline from both reward sources of a batch."""

    def __call__(
        self, outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor
    ) -> Centered:
        """outcome_rewards: (B,); process_rewards, reward_mask: (B, T); group_index: (B,) int64."""
        ...


def group_sums(values: Tensor, group_index: Tensor) -> Tensor:
    """For each row, the sum of `values` over its group.

    values: (B,); group_index: (B,) int64. Returns (B,).

    >>> group_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]))
    tensor([5., 2., 5.])
    """
    groups = int(group_index.max()) + 1 if group_index.numel() else 0
    sums = values.new_zeros(groups).index_add(0, group_index, values)
    return sums[group_index]


def group_sizes(like: Tensor, group_index: Tensor) -> Tensor:
    """The number of rows in each row's group, (B,) in the dtype of `like`. Raises ValueError for a group of one row."""
    sizes = group_sums(torch.ones_like(like), group_index)
    if bool((sizes < 2).any()):
        raise ValueError("a group has only one response; this estimator compares the responses of a group")
    return sizes


def mean_of_others(values: Tensor, group_index: Tensor) -> Tensor:
    """The leave-one-out baseline: for each row, the mean over the other rows of its group.

    values: (B,); group_index: (B,) int64. Returns (B,).
    Raises ValueError for a group of one row, which has no others.

    >>> mean_of_others(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]))
    tensor([0.0000, 0.5000, 0.5000])
    """
    sizes = group_sizes(values, group_index)
    return (group_sums(values, group_index) - values) / (sizes - 1)


def group_std(values: Tensor, group_index: Tensor) -> Tensor:
    """Sample standard deviation (n - 1) of each row's group.

    values: (B,); group_index: (B,) int64. Returns (B,). Raises ValueError for a group of one row.

    >>> group_std(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    tensor([1.4142, 1.4142])
    """
    sizes = group_sizes(values, group_index)
    deviations = values - group_sums(values, group_index) / sizes
    return (group_sums(deviations.square(), group_index) / (sizes - 1)).sqrt()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row under its mask; 0 for a row without tokens.

    values, mask: (B, T). Returns (B,).

    >>> masked_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def rloo(outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Centered:
    """REINFORCE with a leave-one-out baseline, for both reward sources.

    The baseline of an outcome reward is the mean outcome reward of the other responses in the group; that of a process
    reward is the mean, over those responses, of their mean process reward. PRIME (arXiv 2502.01456), equation 5.

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> process = torch.tensor([[0.5, 0.1], [0.2, 0.0]])
    >>> rloo(torch.tensor([1.0, 0.0]), process, mask, torch.tensor([0, 0]))
    Centered(outcome=tensor([ 1., -1.]), process=tensor([[ 0.3000, -0.1000],
            [-0.1000,  0.0000]]))
    """
    means = masked_mean(process_rewards, reward_mask)  # (B,)
    process = process_rewards - mean_of_others(means, group_index)[:, None]  # (B, T)
    return Centered(
        outcome_rewards - mean_of_others(outcome_rewards, group_index), process.masked_fill(~reward_mask, 0.0)
    )


def rloo_recipe(outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Centered:
    """`rloo` with the process baseline of PRIME's original code and of its port to verl.

    The centred process reward is r * n/(n-1) - (sum of the mean process rewards of all n responses)/(n-1).

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> process = torch.tensor([[0.5, 0.1], [0.2, 0.0]])
    >>> rloo_recipe(torch.tensor([1.0, 0.0]), process, mask, torch.tensor([0, 0])).process
    tensor([[ 0.5000, -0.3000],
            [-0.1000,  0.0000]])
    """
    means = masked_mean(process_rewards, reward_mask)  # (B,)
    size = group_sizes(means, group_index)
    baseline = group_sums(means, group_index) / (size - 1)
    process = process_rewards * (size / (size - 1))[:, None] - baseline[:, None]  # (B, T)
    return Centered(
        outcome_rewards - mean_of_others(outcome_rewards, group_index), process.masked_fill(~reward_mask, 0.0)
    )


def reinforce(outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Centered:
    """No baseline at all (Williams, 1992). `gae` starts from this too, since its critic is the baseline.

    >>> reinforce(torch.tensor([1.0]), torch.tensor([[0.5]]), torch.tensor([[True]]), torch.tensor([0]))
    Centered(outcome=tensor([1.]), process=tensor([[0.5000]]))
    """
    return Centered(outcome_rewards, process_rewards.masked_fill(~reward_mask, 0.0))


def dr_grpo(outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Centered:
    """Rewards minus the mean of their group, not divided by anything (Dr. GRPO, arXiv 2503.20783).

    The baseline of a process reward is the group's mean of the responses' mean process rewards.

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> process = torch.tensor([[0.5, 0.1], [0.2, 0.0]])
    >>> dr_grpo(torch.tensor([1.0, 0.0]), process, mask, torch.tensor([0, 0]))
    Centered(outcome=tensor([ 0.5000, -0.5000]), process=tensor([[ 0.2500, -0.1500],
            [-0.0500,  0.0000]]))
    """
    sizes = group_sizes(outcome_rewards, group_index)
    means = masked_mean(process_rewards, reward_mask)  # (B,)
    process = process_rewards - (group_sums(means, group_index) / sizes)[:, None]  # (B, T)
    return Centered(
        outcome_rewards - group_sums(outcome_rewards, group_index) / sizes, process.masked_fill(~reward_mask, 0.0)
    )


def grpo(outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Centered:
    """Rewards minus the mean of their group, divided by its standard deviation (GRPO, arXiv 2402.03300).

    The deviation is the group's sample standard deviation (n - 1), plus 1e-6; for process rewards, that of the
    responses' mean process rewards. The division removes the scale of the PRM, so one that knows nothing yet counts as
    much as a good one, and summed over many tokens its rewards can dwarf the outcome; `dr_grpo` does not divide.

    >>> mask = torch.tensor([[True], [True]])
    >>> grpo(torch.tensor([1.0, 0.0]), torch.tensor([[0.2], [0.4]]), mask, torch.tensor([0, 0]))
    Centered(outcome=tensor([ 0.7071, -0.7071]), process=tensor([[-0.7071],
            [ 0.7071]]))
    """
    centered = dr_grpo(outcome_rewards, process_rewards, reward_mask, group_index)
    outcome_std = group_std(outcome_rewards, group_index) + GRPO_EPSILON  # (B,)
    process_std = group_std(masked_mean(process_rewards, reward_mask), group_index) + GRPO_EPSILON
    return Centered(centered.outcome / outcome_std, centered.process / process_std[:, None])


def gdpo(outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Centered:
    """Each source's total per response, minus its group's mean and divided by its standard deviation.

    So both sources reach every group with the same deviation, whatever their scales. `grpo` divides process rewards by
    the deviation of the responses' *mean* rewards, which is far smaller than that of their sums. The process rewards
    are centred as in `dr_grpo`. Deviations are sample ones (n - 1), plus 1e-6. GDPO (arXiv 2601.05242), which has one
    reward per response and source.

    >>> mask = torch.tensor([[True, True], [True, True]])
    >>> gdpo(torch.tensor([1.0, 0.0]), torch.tensor([[0.1, 0.3], [0.5, 0.1]]), mask, torch.tensor([0, 0])).process
    tensor([[-1.0607,  0.3536],
            [ 1.7678, -1.0607]])
    """
    centered = dr_grpo(outcome_rewards, process_rewards, reward_mask, group_index)
    outcome_std = group_std(outcome_rewards, group_index) + GRPO_EPSILON  # (B,)
    process_std = group_std(centered.process.sum(-1), group_index) + GRPO_EPSILON
    return Centered(centered.outcome / outcome_std, centered.process / process_std[:, None])


def maxrl(
    outcome_rewards: Tensor,
    process_rewards: Tensor,
    reward_mask: Tensor,
    group_index: Tensor,
    *,
    epsilon: float = 0.0,
) -> Centered:
    """Rewards minus the mean of their group, divided by its mean outcome reward; 0 where that is not above 0.

    So a prompt counts the more, the rarer its right responses: with the number of samples, the gradient goes from that
    of the mean outcome to that of the log-likelihood of a right response. The process rewards are centred as in
    `dr_grpo` and weighted like their prompt. MaxRL (arXiv 2602.02710). epsilon: added to the mean in the denominator.

    >>> mask = torch.tensor([[True], [True], [True], [True]])
    >>> maxrl(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, 1), mask, torch.tensor([0, 0, 0, 0])).outcome
    tensor([ 3., -1., -1., -1.])
    """
    centered = dr_grpo(outcome_rewards, process_rewards, reward_mask, group_index)
    mean = group_sums(outcome_rewards, group_index) / group_sizes(outcome_rewards, group_index)  # (B,)
    weight = torch.where(mean > 0, 1 / (mean + epsilon), 0.0)
    return Centered(centered.outcome * weight, centered.process * weight[:, None])


def on_last_token(values: Tensor, response_mask: Tensor) -> Tensor:
    """Puts one value per response on its last token, and 0 elsewhere.

    values: (B,); response_mask: (B, T), contiguous from the left. Returns (B, T).

    >>> on_last_token(torch.tensor([7.0]), torch.tensor([[True, True, False]]))
    tensor([[0., 7., 0.]])
    """
    return last_token(response_mask) * values[:, None]


def discounted(
    centered: Centered, response_mask: Tensor, *, outcome_gamma: float = 1.0, process_gamma: float | Tensor = 1.0
) -> Parts:
    """Monte Carlo advantages: by source, the discounted sum of the centred rewards from each token on.

    The outcome reward is placed on the last token, so with `outcome_gamma` 1 all tokens get the same share of it.
    response_mask: (B, T), contiguous from the left. process_gamma: per token, or, (B, T), from each token to the next.
    Returns two (B, T), 0 outside the response.

    >>> centered = Centered(torch.tensor([1.0]), torch.tensor([[0.5, 0.25]]))
    >>> discounted(centered, torch.tensor([[True, True]]), outcome_gamma=0.5)
    Parts(outcome=tensor([[0.5000, 1.0000]]), process=tensor([[0.7500, 0.2500]]))
    """
    outcome = reward_to_go(on_last_token(centered.outcome, response_mask), outcome_gamma)
    process = reward_to_go(centered.process, process_gamma)
    return Parts(*(part.masked_fill(~response_mask, 0.0) for part in (outcome, process)))


def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimates: the sum over s >= t of (gamma * lam)^(s-t) * delta_s (arXiv 1506.02438).

    delta_t = r_t + gamma * V_(t+1) - V_t. The value after the last token is 0, so a truncated response counts as ended.
    Linear in (rewards, values), so the parts of several sources add up.

    rewards: (B, T). values: (B, T), what the critic expects before each token. response_mask: (B, T), contiguous from
    the left. Returns (B, T), 0 outside the response.

    >>> mask = torch.tensor([[True, True]])
    >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.6]]), mask, lam=0.5)
    tensor([[0.3000, 0.4000]])
    """
    rewards, values = rewards * response_mask, values * response_mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    delta = rewards + gamma * following - values
    return reward_to_go(delta, gamma * lam) * response_mask


def whitening(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and scale that whiten the values under the mask: whitened = (values - mean) * scale.

    The variance is unbiased, and 1e-8 is added to it under the root. values, mask: (B, T). Returns two (). Raises
    ValueError for fewer than two values.
    """
    under = values[mask]
    if under.numel() < 2:
        raise ValueError("whitening needs at least two tokens")
    variance, mean = torch.var_mean(under, correction=1)
    return mean, torch.rsqrt(variance + WHITEN_EPSILON)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values with mean 0 and sample variance 1 over all tokens under the mask: of the whole batch, not of a shard.

    values, mask: (B, T). Returns (B, T), 0 outside the mask.

    >>> whiten(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]))
    tensor([[-0.7071,  0.7071]])
    """
    mean, scale = whitening(values, mask)
    return (values - mean) * scale * mask
