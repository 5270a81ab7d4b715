"""Token rewards: the implicit process reward, and what is done to it before advantages are computed."""

from __future__ import annotations

import torch
from torch import Tensor

BATCH_SCALE_EPSILON = 1e-6  # keeps a batch whose rewards are all 0 from dividing by 0


def implicit_process_rewards(prm_logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> Tensor:
    """The reward of each token: beta * (log p_phi - log p_ref), in nats times beta.

    prm_logprobs, ref_logprobs: nats, same shape. Returns that shape.
    Implicit PRM (arXiv 2412.01981), proposition 3.1; PRIME (arXiv 2502.01456), section 2.2.

    >>> implicit_process_rewards(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -2.0]), beta=0.5)
    tensor([1., 0.])
    """
    return beta * (prm_logprobs - ref_logprobs)


def reward_to_go(rewards: Tensor, gamma: float | Tensor = 1.0) -> Tensor:
    """Discounted sum of the rewards from each token on.

    rewards: (B, T), 0 outside the response. gamma: the discount per token, or, (B, T), from each token to the next.
    Returns (B, T); padding on the right stays 0.
    PRIME (arXiv 2502.01456), section 3.2.

    >>> reward_to_go(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[6., 5., 3.]])
    >>> reward_to_go(torch.tensor([[1.0, 2.0, 4.0]]), gamma=0.5)
    tensor([[3., 4., 4.]])
    """
    if isinstance(gamma, float | int) and gamma == 1.0:
        return rewards.flip(-1).cumsum(-1).flip(-1)
    returns = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else rewards.new_zeros(rewards.shape[0])
    for token in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, token] + (gamma[:, token] if isinstance(gamma, Tensor) else gamma) * running
        returns[:, token] = running
    return returns


def scale_over_batch(rewards: Tensor, response_mask: Tensor, gamma: float | Tensor = 1.0) -> Tensor:
    """Process rewards divided by the largest |reward-to-go| of the whole batch (plus 1e-6).

    A PRM that has only begun to train gives rewards of any size; this bounds every return by 1 and keeps 0 at 0. It
    must be given the whole batch, or shards would be scaled differently.

    rewards: (B, T); response_mask: (B, T); gamma: as in `reward_to_go`. Returns (B, T), 0 outside the mask.

    >>> scale_over_batch(torch.tensor([[2.0, 2.0]]), torch.tensor([[True, True]]))
    tensor([[0.5000, 0.5000]])
    """
    masked = rewards * response_mask
    largest = reward_to_go(masked, gamma).abs().amax()
    return masked / (largest + BATCH_SCALE_EPSILON)


def last_token(response_mask: Tensor) -> Tensor:
    """True on the last token of each response.

    response_mask: (B, T) bool, contiguous from the left. Returns (B, T) bool.

    >>> last_token(torch.tensor([[True, True, False]]))
    tensor([[False,  True, False]])
    """
    index = torch.arange(response_mask.shape[1], device=response_mask.device)[None, :]
    return index == response_mask.sum(-1, keepdim=True) - 1


def drop_last_token(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """Process rewards with the reward of each response's last token set to 0.

    PRIME's port to verl leaves the last token (the end-of-sequence token of a finished response) out of the score.

    rewards: (B, T); response_mask: (B, T), contiguous from the left. Returns (B, T).

    >>> drop_last_token(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[True, True, False]]))
    tensor([[1., 0., 0.]])
    """
    return rewards.masked_fill(last_token(response_mask), 0.0)


def sum_into(rewards: Tensor, ends: Tensor, response_mask: Tensor) -> Tensor:
    """Rewards summed over each step: the sum is on the last token of the step, and the tokens before it have 0.

    A step begins after the end of the previous one. The last token of a response always ends a step.

    rewards: (B, T); ends: (B, T) bool, True on the last token of a step; response_mask: (B, T), contiguous from
    the left. Returns (B, T).

    >>> ends = torch.tensor([[False, True, False, True]])
    >>> sum_into(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), ends, torch.ones(1, 4, dtype=torch.bool))
    tensor([[0., 3., 0., 7.]])
    """
    ends = (ends & response_mask) | last_token(response_mask)
    number = ends.long().cumsum(-1) - ends.long()  # (B, T): the step that each token belongs to, from 0
    totals = torch.zeros_like(rewards).scatter_add(-1, number, rewards * response_mask)
    return totals.gather(-1, number) * ends
