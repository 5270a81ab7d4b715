"""What process rewards become before a baseline is subtracted, and how they are compared within a group.

`reward_mask` (B, T) is True where there is a process reward: on every response token, on the last token of each step,
or on the last token only. Below, a reward's place is called a step, whichever of these it is. `group_index` (B,) holds
the number, from 0, of the group that each response belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from primecli.core.advantages import Estimator, group_sums, masked_mean, mean_of_others

RIGHT = 0.5  # a response is right if its outcome reward is above this, else wrong
SMALLEST_STD = 1e-6  # of a group's prefix values; below it they are all equal
BLOCK = (
    2**18
)  # tokens whose steps are compared at a time: fewer would be slower, more would take more memory than `rloo`
SMALLEST_VARIANCE = 1e-12  # of a source's advantages; below it the source says nothing


class Form(Protocol):
    """Transforms the process rewards of a batch before a baseline is subtracted."""

    def __call__(
        self,
        process_rewards: Tensor,
        reward_mask: Tensor,
        outcome_rewards: Tensor,
        group_index: Tensor,
        *,
        temperature: float,
    ) -> Tensor:
        """process_rewards, reward_mask: (B, T); outcome_rewards, group_index: (B,). Returns (B, T)."""
        ...


def plain(
    process_rewards: Tensor,
    reward_mask: Tensor,
    outcome_rewards: Tensor,
    group_index: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Process rewards as they are. The arguments are those of `Form`, of which only the first is used."""
    return process_rewards


def softmax_over_steps(values: Tensor, reward_mask: Tensor) -> Tensor:
    """Softmax over the steps of each response.

    values, reward_mask: (B, T). Returns (B, T), 0 outside the mask; each row with a step sums to 1.

    >>> softmax_over_steps(torch.tensor([[2.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    masked = values.masked_fill(~reward_mask, -torch.inf)
    return masked.softmax(-1).masked_fill_(~reward_mask, 0.0)  # a row without steps would be NaN


def redistributed(
    process_rewards: Tensor,
    reward_mask: Tensor,
    outcome_rewards: Tensor,
    group_index: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """The outcome reward, divided among the steps: the share of a step is softmax(process reward / temperature).

    So an ignorant PRM cannot outweigh the outcome: what a response is credited for sums to its outcome reward. ITPO
    (arXiv 2603.23550), its softmax of sums. The arguments are those of `Form`; group_index is not used.

    >>> mask = torch.tensor([[True, True]])
    >>> rewards = torch.tensor([[0.0, 1.0986]])
    >>> redistributed(rewards, mask, torch.tensor([1.0]), torch.tensor([0]))
    tensor([[0.2500, 0.7500]])
    """
    return softmax_over_steps(process_rewards / temperature, reward_mask).mul_(outcome_rewards[:, None])


def min_form(
    process_rewards: Tensor,
    reward_mask: Tensor,
    outcome_rewards: Tensor,
    group_index: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """Process rewards of which nearly only a response's smallest one counts: r * softmax(-r / temperature).

    Where rewards are summed, many good steps make up for a fatal one; here a response is as good as its worst step. As
    the temperature goes to 0, the rewards of a response sum to its smallest one. PURE (arXiv 2504.15275). The arguments
    are those of `Form`; outcome_rewards and group_index are not used.

    >>> mask = torch.tensor([[True, True]])
    >>> min_form(torch.tensor([[1.0, -1.0]]), mask, torch.tensor([1.0]), torch.tensor([0]), temperature=0.1)
    tensor([[ 2.0612e-09, -1.0000e+00]])
    """
    return softmax_over_steps(process_rewards / -temperature, reward_mask).mul_(process_rewards)


def wrong_centered(
    process_rewards: Tensor,
    reward_mask: Tensor,
    outcome_rewards: Tensor,
    group_index: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Process rewards, those of wrong responses minus the mean over the group's wrong responses.

    So the PRM orders wrong responses but cannot, as a whole, lift them above right ones. The mean is that of the
    responses' mean rewards. PROGRS (arXiv 2604.02341). The arguments are those of `Form`; a response is wrong if its
    outcome reward is 0.5 or less, and temperature is not used.

    >>> mask = torch.ones(3, 1, dtype=torch.bool)
    >>> rewards, outcomes = torch.tensor([[5.0], [4.0], [2.0]]), torch.tensor([1.0, 0.0, 0.0])
    >>> wrong_centered(rewards, mask, outcomes, torch.tensor([0, 0, 0]))
    tensor([[ 5.],
            [ 1.],
            [-1.]])
    """
    wrong = (outcome_rewards <= RIGHT).to(process_rewards)  # (B,)
    means = masked_mean(process_rewards, reward_mask)  # (B,)
    among_wrong = group_sums(means * wrong, group_index) / group_sums(wrong, group_index).clamp(min=1)  # (B,)
    return (process_rewards - (among_wrong * wrong)[:, None]).masked_fill_(~reward_mask, 0.0)


def rloo_per_token(
    process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor, tokens_per_step: Tensor
) -> Tensor:
    """Process rewards minus the others' reward per token, times the tokens of the step.

    The reward per token pools the other responses of the group: the sum of their rewards over that of their tokens. So
    a response gains nothing by more or longer steps. PURE (arXiv 2504.15275).

    tokens_per_step: (B, T), on the last token of each step. Returns (B, T), 0 outside the mask. Raises ValueError for a
    group of one row.

    >>> mask = torch.tensor([[True, True], [False, True]])
    >>> rewards, tokens = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    >>> rloo_per_token(rewards, mask, torch.tensor([0, 0]), tokens)
    tensor([[-1.,  0.],
            [ 0.,  1.]])
    """
    totals = mean_of_others((process_rewards * reward_mask).sum(-1), group_index)  # (B,)
    lengths = mean_of_others((tokens_per_step * reward_mask).sum(-1), group_index)
    per_token = totals / lengths.clamp(min=1e-12)  # the others may all be empty
    return (process_rewards - per_token[:, None] * tokens_per_step).masked_fill_(~reward_mask, 0.0)


def tokens_per_step(reward_mask: Tensor) -> Tensor:
    """How many tokens each step has: on its last token, 0 elsewhere.

    reward_mask: (B, T) bool, True at the last token of each step. Returns (B, T) float64.

    >>> tokens_per_step(torch.tensor([[False, True, True, False]])).int()
    tensor([[0, 2, 1, 0]], dtype=torch.int32)
    """
    position = torch.arange(1, reward_mask.shape[1] + 1, device=reward_mask.device, dtype=torch.float64)
    ends = position * reward_mask  # (B, T): the number of tokens up to each end
    before = ends.cummax(-1).values.roll(1, -1)  # up to the end before
    before[:, :1] = 0.0
    return (ends - before).masked_fill_(~reward_mask, 0.0)


def pooled(estimator: Estimator, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Tensor:
    """The estimator's treatment of outcomes, applied to the process rewards: each step is a sample of its own.

    All steps of a group's responses are one group, so `grpo` standardises over them and `rloo` subtracts the mean of
    the others. The estimator is given some groups at a time. iStar (arXiv 2509.19199). Returns (B, T), 0 outside the
    mask. Raises ValueError for a group with one step.

    >>> from primecli.core.advantages import dr_grpo
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> pooled(dr_grpo, torch.tensor([[1.0, 2.0], [6.0, 0.0]]), mask, torch.tensor([0, 0]))
    tensor([[-2., -1.],
            [ 3.,  0.]])
    """
    found = torch.zeros_like(process_rewards)
    for rows in blocks_of_groups(group_index, reward_mask.shape[1]):
        mask = reward_mask[rows]  # (b, T)
        groups = (group_index[rows] - group_index[rows].min())[:, None].expand_as(mask)[mask]  # (steps,)
        centred = centered_outcomes(estimator, process_rewards[rows][mask], groups)
        found[rows] = found.new_zeros(mask.shape).masked_scatter_(mask, centred)
    return found


def blocks_of_groups(group_index: Tensor, width: int) -> Iterator[Tensor]:
    """The row numbers of some whole groups at a time, about `BLOCK` tokens of `width` a row.

    >>> [rows.tolist() for rows in blocks_of_groups(torch.tensor([0, 1, 0, 1]), BLOCK // 2)]
    [[0, 2], [1, 3]]
    """
    groups = int(group_index.max()) + 1 if group_index.numel() else 0
    at_a_time = max(1, BLOCK * groups // max(1, width * len(group_index)))
    for first in range(0, groups, at_a_time):
        rows = ((group_index >= first) & (group_index < first + at_a_time)).nonzero().squeeze(1)
        if len(rows):
            yield rows


def centered_outcomes(estimator: Estimator, outcomes: Tensor, group_index: Tensor) -> Tensor:
    """The estimator's centred outcome rewards alone, (B,). outcomes, group_index: (B,)."""
    nothing = outcomes.new_zeros(len(outcomes), 1)
    return estimator(outcomes, nothing, nothing.bool(), group_index).outcome


def by_position(
    estimator: Estimator, process_rewards: Tensor, reward_mask: Tensor, response_mask: Tensor, group_index: Tensor
) -> Tensor:
    """Advantages from the process rewards so far, compared with those of the group's responses at the same step.

    C_k is the sum of a response's process rewards up to its step k. The estimator treats the C_k of the group's
    responses that have a step k as it treats outcomes, some groups at a time: `dr_grpo` subtracts their mean. All
    tokens of a step have its advantage, and it is 0 where no other response is as long. SPRO's masked step advantage
    (arXiv 2507.01551).

    Returns (B, T), 0 outside the response.

    >>> from primecli.core.advantages import dr_grpo
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> by_position(dr_grpo, torch.tensor([[1.0, 2.0], [3.0, 0.0]]), mask, mask, torch.tensor([0, 0]))
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    """
    found = torch.zeros_like(process_rewards)
    for rows in blocks_of_groups(group_index, reward_mask.shape[1]):
        own_groups = group_index[rows] - group_index[rows].min()
        found[rows] = _by_position(estimator, process_rewards[rows], reward_mask[rows], response_mask[rows], own_groups)
    return found


def _by_position(
    estimator: Estimator, process_rewards: Tensor, reward_mask: Tensor, response_mask: Tensor, group_index: Tensor
) -> Tensor:
    steps = int(reward_mask.sum(-1).amax())
    number = reward_mask.long().cumsum(-1)  # (B, T): of each step, from 1, at its last token
    places = (group_index[:, None] * steps + number - 1)[reward_mask]  # (steps,): group and number of each step
    so_far = (process_rewards * reward_mask).cumsum(-1)[reward_mask]  # (steps,): C_k
    compared = torch.bincount(places)[places] > 1
    centred = torch.zeros_like(so_far)
    centred[compared] = centered_outcomes(estimator, so_far[compared], places[compared])
    by_step = process_rewards.new_zeros(reward_mask.shape).masked_scatter_(reward_mask, centred)  # at the last tokens
    step_of = number.sub_(reward_mask.long()).clamp_(max=max(reward_mask.shape[1] - 1, 0))  # (B, T): from 0
    packed = torch.zeros_like(by_step).scatter_add_(-1, step_of, by_step)  # (B, T): the k-th column is step k
    return packed.gather(-1, step_of).masked_fill_(~response_mask, 0.0)


def standardized_values(process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor) -> Tensor:
    """Process rewards as differences of prefix values, standardised over the group.

    The value of a prefix is the sum of its process rewards, so a reward is the difference of two values. Rewards minus
    their mean over all steps of the group, divided by the standard deviation (n) of the group's values, at least 1e-6.
    Summed with lambda, they are generalised advantage estimates. IPVRM (arXiv 2604.13197). Returns (B, T), 0 outside
    the mask.

    >>> mask = torch.tensor([[True, True]])  # values 1 and 5: deviation 2
    >>> standardized_values(torch.tensor([[1.0, 4.0]]), mask, torch.tensor([0]))
    tensor([[-0.7500,  0.7500]])
    """
    masked = process_rewards * reward_mask
    steps = group_sums(reward_mask.sum(-1).to(masked), group_index).clamp(min=1)  # (B,)
    mean = group_sums(masked.sum(-1), group_index) / steps
    values = masked.cumsum(-1)
    value_mean = group_sums((values * reward_mask).sum(-1), group_index) / steps
    squares = ((values - value_mean[:, None]) * reward_mask).square_().sum(-1)
    std = (group_sums(squares, group_index) / steps).sqrt().clamp(min=SMALLEST_STD)
    return ((masked - mean[:, None]) / std[:, None]).masked_fill_(~reward_mask, 0.0)


def step_discounts(reward_mask: Tensor, gamma: float, lam: float) -> Tensor:
    """The discount from each token to the next: gamma, and times lambda where the token ends a step.

    With it `reward_to_go` gives all tokens of a step its reward, plus lambda times that of the next step, and so on
    (with gamma 1). reward_mask: (B, T). Returns (B, T) float64.

    >>> step_discounts(torch.tensor([[False, True, True]]), 1.0, 0.5)
    tensor([[1.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    return torch.full(reward_mask.shape, gamma, dtype=torch.float64).masked_fill_(reward_mask, gamma * lam)


def source_weights(outcome_variance: float, process_variance: float, share: float) -> tuple[float, float]:
    """The weights of the advantages from outcomes and from process rewards, so that the latter take a share of both.

    The share is Var(process) / (Var(process) + Var(outcome)) of the weighted advantages. The outcome keeps weight 1,
    and has 0 with a share of 1. Where the variance of a source is at most 1e-12, the other stands alone; but with a
    share of 0 process rewards never have a weight, and with 1 the outcome never has.

    outcome_variance, process_variance: of the batch's tokens.

    >>> source_weights(1.0, 4.0, share=0.5)
    (1.0, 0.5)
    """
    if share in (0.0, 1.0):
        return 1.0 - share, share
    if process_variance <= SMALLEST_VARIANCE:
        return 1.0, 0.0
    if outcome_variance <= SMALLEST_VARIANCE:
        return 0.0, 1.0
    return 1.0, (share / (1 - share) * outcome_variance / process_variance) ** 0.5


def trust(pair_accuracy: float | None) -> float:
    """How far a PRM is to be trusted, from 0 to 1: 2 * pair accuracy - 1, and 0 below chance.

    pair_accuracy: the share of right/wrong pairs, of responses that it had not been trained on, that it ranks
    correctly; None if it was never measured on any.

    >>> trust(0.75), trust(0.4), trust(None)
    (0.5, 0.0, 0.0)
    """
    return 0.0 if pair_accuracy is None else max(0.0, 2 * pair_accuracy - 1)
