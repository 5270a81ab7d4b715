from __future__ import annotations

from typing import Any

import pytest
import torch

from primecli.core.ragged import response_mask
from primecli.core.rewards import (
    drop_last_token,
    implicit_process_rewards,
    last_token,
    reward_to_go,
    scale_over_batch,
    sum_into,
)
from tests.core.reference import CASES, NAMES, float64, given, mask


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_scale_over_batch(case: dict[str, Any]) -> None:
    ours = scale_over_batch(given(case, "prm_minus_ref_logprobs"), mask(case))
    torch.testing.assert_close(ours, float64(case["expected"]["process_norm_batch"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reward_to_go_is_the_double_sum(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(rewards)
    for token in range(6):
        for later in range(token, 6):
            expected[:, token] += gamma ** (later - token) * rewards[:, later]
    torch.testing.assert_close(reward_to_go(rewards, gamma), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_scaled_returns_are_bounded_by_one(gamma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = response_mask(torch.tensor([4, 9, 1]))
    rewards = 100 * torch.randn(3, 9, generator=generator, dtype=torch.float64)
    returns = reward_to_go(scale_over_batch(rewards, tokens, gamma), gamma)
    assert float(returns.abs().max()) == pytest.approx(1, abs=1e-6)


def test_rewards_of_an_untrained_prm_are_zero_and_stay_zero() -> None:
    logprobs = -torch.rand(2, 3)
    rewards = implicit_process_rewards(logprobs, logprobs, beta=0.05)
    assert torch.equal(scale_over_batch(rewards, torch.ones(2, 3, dtype=torch.bool)), torch.zeros(2, 3))


def test_a_token_that_the_prm_likes_more_than_the_reference_is_rewarded() -> None:
    rewards = implicit_process_rewards(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.5]), beta=0.5)
    assert rewards.tolist() == [1.0, -0.25]


def test_drop_last_token_drops_each_rows_own() -> None:
    tokens = response_mask(torch.tensor([1, 3]))
    dropped = drop_last_token(torch.ones(2, 3) * tokens, tokens)
    assert dropped.tolist() == [[0, 0, 0], [1, 1, 0]]


def test_a_reward_summed_over_steps_keeps_every_return_at_a_steps_start() -> None:
    case = CASES[3]
    rewards, tokens = given(case, "prm_minus_ref_logprobs") * mask(case), mask(case)
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(tokens.shape, generator=generator) < 0.3
    summed = sum_into(rewards, ends, tokens)
    assert not summed[~(ends & tokens | last_token(tokens))].any()
    for row in range(len(rewards)):
        start = 0
        for token in range(tokens.shape[1]):
            if tokens[row, token] and (ends[row, token] or last_token(tokens)[row, token]):
                torch.testing.assert_close(summed[row, token], rewards[row, start : token + 1].sum())
                start = token + 1


def test_the_whole_is_one_step() -> None:
    case = CASES[0]
    rewards, tokens = given(case, "prm_minus_ref_logprobs") * mask(case), mask(case)
    summed = sum_into(rewards, torch.zeros_like(tokens), tokens)
    torch.testing.assert_close(summed[last_token(tokens)], rewards.sum(-1))
    assert int((summed != 0).sum()) == len(rewards)
