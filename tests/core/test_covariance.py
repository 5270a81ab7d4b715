"""Clip-Cov and KL-Cov against public implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from primecli.core.covariance import clip_cov, covariances, kl_cov
from primecli.core.losses import ppo_clip
from tests.core.reference import float64, mask
from tests.core.reference_2 import CASES_2, NAMES_2
from tests.core.test_policy_losses import flat, weights_of

each_case = pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)


@each_case
def test_clip_cov_with_every_token_of_the_band(case: dict[str, Any]) -> None:
    """The public code draws tokens at random; with a share of 1 it takes them all."""
    for variant in case["expected"]["verl_clip_cov"]["variants"]:
        logprobs = flat(case, "logprobs").requires_grad_()
        old, advantages = flat(case, "old_logprobs"), flat(case, variant["advantages_are"])
        weights = weights_of(case, variant["agg"])
        bounds = {"clip_low": variant["clip_low"], "clip_high": variant["clip_high"]}
        plain = ppo_clip(logprobs, old, advantages, weights, **bounds)
        left_out = clip_cov(
            covariances(advantages, logprobs),
            plain.clipped_low | plain.clipped_high,
            torch.zeros(len(old)),
            variant["cov_ratio"],
            variant["cov_low"],
            variant["cov_high"],
        )
        loss = ppo_clip(logprobs, old, advantages, weights * ~left_out, **bounds).loss
        assert float(loss.detach()) == pytest.approx(variant["loss"], abs=2e-7)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        torch.testing.assert_close(gradient, float64(variant["grad_logprobs"])[mask(case)], rtol=0, atol=2e-7)
        assert float(left_out.double().mean()) == pytest.approx(variant["pg_clipfrac"], abs=2e-7)


@each_case
def test_kl_cov(case: dict[str, Any]) -> None:
    for variant in case["expected"]["verl_kl_cov"]["variants"]:
        logprobs = flat(case, "logprobs").requires_grad_()
        old, advantages = flat(case, "old_logprobs"), flat(case, variant["advantages_are"])
        weights = weights_of(case, variant["agg"])
        held = kl_cov(covariances(advantages, logprobs), variant["kl_cov_ratio"])
        plain = ppo_clip(logprobs, old, advantages, weights, clip_low=float("inf"), clip_high=float("inf")).loss
        loss = plain + variant["kl_coef"] * ((logprobs - old).abs() * held * weights).sum()
        assert float(loss.detach()) == pytest.approx(variant["loss"], abs=2e-7)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        torch.testing.assert_close(gradient, float64(variant["grad_logprobs"])[mask(case)], rtol=0, atol=2e-7)


def test_clip_cov_draws_a_share_of_all_tokens_from_the_band() -> None:
    covariance = torch.cat([torch.full((50,), 2.0), torch.full((50,), 9.0)])
    nothing = torch.zeros(100, dtype=torch.bool)
    draws = torch.arange(100).flip(0)
    assert clip_cov(covariance, nothing, draws, 0.1, 1.0, 5.0).nonzero().flatten().tolist() == list(range(40, 50))
    assert clip_cov(covariance, nothing, draws, 0.001, 1.0, 5.0).sum() == 1  # at least one
    assert clip_cov(covariance, nothing, draws, 1.0, 1.0, 5.0).sum() == 50
    assert not clip_cov(covariance, nothing, draws, 1.0, 2.0, 9.0).any()  # bounds excluded
    assert not clip_cov(covariance, ~nothing, draws, 1.0, 1.0, 5.0).any()


def test_covariances_are_centred_and_have_no_gradient() -> None:
    advantages, logprobs = float64([1, 2, 6]), float64([-1, -4, -1]).requires_grad_()
    found = covariances(advantages, logprobs)
    assert found.tolist() == [-2, 2, 3]
    assert not found.requires_grad
    torch.testing.assert_close(covariances(advantages + 5, logprobs - 2), found)


@settings(deadline=None, max_examples=15)
@for_all(st.integers(0, len(CASES_2) - 1), st.randoms(use_true_random=False))
def test_which_tokens_does_not_depend_on_row_order(number: int, random: Any) -> None:
    case = CASES_2[number]
    advantages, logprobs = flat(case, "advantages"), flat(case, "logprobs")
    order = random.sample(range(len(logprobs)), len(logprobs))
    draws = torch.arange(len(order))
    clipped = torch.zeros(len(order), dtype=torch.bool)
    covariance = covariances(advantages, logprobs)
    shuffled = covariances(advantages[order], logprobs[order])
    assert torch.equal(kl_cov(shuffled, 0.2), kl_cov(covariance, 0.2)[order])
    taken = clip_cov(covariance, clipped, draws, 0.2, -0.2, 0.5)
    assert torch.equal(clip_cov(shuffled, clipped, draws[order], 0.2, -0.2, 0.5), taken[order])
