"""Objectives of the process reward model that look at more than a response's summed reward, or weigh its group.

What they need of a group is one number for each response, its group's accuracy over the whole batch. So a group may be
spread over micro-batches, mini-batches and ranks. Losses are sums over responses divided by `denominator`, as in
core/losses.py.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from primecli.core.registry import BALANCES

ACCURACY_BOUND = 1e-6  # keeps the log-odds of a group that is all right or all wrong finite, at 13.8 nats


def group_accuracy(outcome_rewards: Tensor, group_index: Tensor) -> Tensor:
    """For each response, the mean outcome reward of its group.

    outcome_rewards: (B,), in [0, 1]; group_index: (B,) int64, of whole groups. Returns (B,).

    >>> group_accuracy(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    groups = int(group_index.max()) + 1
    totals = outcome_rewards.new_zeros(groups).index_add(0, group_index, outcome_rewards)
    return (totals / torch.bincount(group_index, minlength=groups))[group_index]


def prefix_values(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """The value of each prefix of a response: the mean reward of its tokens up to and including this one.

    rewards: (B, T), nats; response_mask: (B, T) bool, contiguous from the left. Returns (B, T), 0 outside the mask.
    IPVRM (arXiv 2604.13197): v_t = beta / t * (log p_prm(y_1..y_t) - log p_ref(y_1..y_t)).

    >>> prefix_values(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[True, True, False]]))
    tensor([[1., 2., 0.]])
    """
    masked = rewards * response_mask
    tokens = torch.arange(1, rewards.shape[-1] + 1, device=rewards.device, dtype=rewards.dtype)  # (T,)
    return masked.cumsum(-1) / tokens * response_mask


def balanced_logistic(
    values: Tensor,
    outcome_rewards: Tensor,
    group_accuracy: Tensor,
    *,
    margin: float = 0.0,
    balance: Collection[str] = (),
) -> Tensor:
    """Logistic loss of values that should be at least `margin` above 0 where the outcome is right, below where wrong.

    Elementwise w * softplus(margin - s * value), s = 1 for a right response and -1 for a wrong one. A fractional
    outcome y is a soft label: y times the loss as a right response plus 1 - y times that as a wrong one.

    `balance` says how the accuracy p of the response's group enters. boundary: the margin is reduced by
    s * log(p / (1 - p)), so that the values need not learn how often the prompt is solved. weight: w is 1 - p for right
    responses and p for wrong ones, scaled to a mean of 1 in the group, so that both sides weigh the same; 1 where the
    group has only one side.

    values: any shape; outcome_rewards, group_accuracy: in [0, 1], shapes that broadcast to it. Returns the shape of
    `values`. Raises ValueError for an unknown `balance`. IPVRM (arXiv 2604.13197), its online objective.

    >>> right, accuracy = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.25])
    >>> balanced_logistic(torch.zeros(2), right, accuracy)
    tensor([0.6931, 0.6931])
    >>> balanced_logistic(torch.zeros(2), right, accuracy, balance=("weight",)) / 0.6931
    tensor([2.0001, 0.6667])
    >>> balanced_logistic(torch.tensor([0.0, -1.0986]), right, accuracy, balance=("boundary",))
    tensor([1.3863, 0.1054])
    """
    unknown = set(balance) - set(BALANCES)
    if unknown:
        raise ValueError(f"balance has {', '.join(sorted(unknown))}; it may have {', '.join(BALANCES)}")
    shift = torch.zeros_like(group_accuracy)
    if "boundary" in balance:
        shift = torch.logit(group_accuracy.double(), ACCURACY_BOUND).to(group_accuracy.dtype)
    right = outcome_rewards * F.softplus(margin - shift - values)
    wrong = (1 - outcome_rewards) * F.softplus(margin + shift + values)
    if "weight" in balance:  # the group's mean of y (1 - p) + (1 - y) p is 2 p (1 - p)
        mixed = (group_accuracy > 0) & (group_accuracy < 1)
        right = right * torch.where(mixed, 0.5 / group_accuracy, 1.0)
        wrong = wrong * torch.where(mixed, 0.5 / (1 - group_accuracy), 1.0)
    return right + wrong


def prm_balanced(
    scores: Tensor,
    outcome_rewards: Tensor,
    group_accuracy: Tensor,
    *,
    denominator: Tensor | float,
    margin: float = 0.0,
    balance: Collection[str] = (),
) -> Tensor:
    """`prm_cross_entropy` with a margin and balanced groups, as `balanced_logistic` says; without them, the same.

    scores: (B,), the sum over tokens of beta * (log p_phi - log p_ref). outcome_rewards, group_accuracy: (B,).
    denominator: responses in the whole mini-batch. Returns (). IPVRM (arXiv 2604.13197), its baseline objective.

    >>> prm_balanced(torch.zeros(1), torch.ones(1), torch.ones(1), denominator=1)
    tensor(0.6931)
    """
    terms = balanced_logistic(scores, outcome_rewards, group_accuracy, margin=margin, balance=balance)
    return terms.sum() / denominator


def prm_prefix(
    rewards: Tensor,
    response_mask: Tensor,
    outcome_rewards: Tensor,
    group_accuracy: Tensor,
    *,
    denominator: Tensor | float,
    margin: float = 5.0,
    balance: Collection[str] = (),
) -> Tensor:
    """The mean over a response's tokens of the logistic loss of its prefixes' values against its outcome.

    Every prefix has to predict the outcome, so a reward says what its token changed in the prediction. Cross-entropy of
    the sum leaves open which tokens it comes from.

    rewards: (B, T), beta * (log p_phi - log p_ref); response_mask: (B, T) bool, contiguous from the left, True
    somewhere in each row. outcome_rewards, group_accuracy: (B,). denominator: responses in the whole mini-batch.
    margin, balance: as in `balanced_logistic`. Returns (). IPVRM (arXiv 2604.13197), its online objective.

    >>> rewards, mask = torch.tensor([[2.0, -2.0, 9.0]]), torch.tensor([[True, True, False]])
    >>> prm_prefix(rewards, mask, torch.ones(1), torch.ones(1), denominator=1, margin=0.0)  # softplus of -2 and of 0
    tensor(0.4100)
    """
    terms = balanced_logistic(
        prefix_values(rewards, response_mask),
        outcome_rewards[:, None],
        group_accuracy[:, None],
        margin=margin,
        balance=balance,
    )  # (B, T)
    return ((terms * response_mask).sum(-1) / response_mask.sum(-1)).sum() / denominator


def prefix_hits(rewards: Tensor, response_mask: Tensor, outcome_rewards: Tensor) -> Tensor:
    """How many prefixes of each response have a value above 0 if and only if its outcome reward is above 0.5.

    rewards, response_mask: (B, T); outcome_rewards: (B,). Returns (B,) int64. Neither beta nor the objective scales
    it, so PRMs can be compared.

    >>> prefix_hits(torch.tensor([[2.0, -1.0, -5.0]]), torch.ones(1, 3, dtype=torch.bool), torch.ones(1))
    tensor([2])
    """
    positive = prefix_values(rewards, response_mask) > 0
    return ((positive == (outcome_rewards > 0.5)[:, None]) & response_mask).sum(-1)
