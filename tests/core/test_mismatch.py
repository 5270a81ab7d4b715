"""Corrections of the mismatch between sampler and trainer, against public implementations."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from primecli.core.losses import ppo_clip
from primecli.core.mismatch import LEVELS, on_policy_enough, ratio_by, truncated, within
from primecli.core.ragged import row_sums
from tests.core.reference import float64, mask
from tests.core.reference_2 import CASES_2, NAMES_2
from tests.core.test_policy_losses import flat, lengths_of, weights_of

each_case = pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)
each_level = pytest.mark.parametrize("level", LEVELS)


def ratios(case: dict[str, Any], level: str) -> Tensor:
    return ratio_by(level, flat(case, "old_logprobs"), flat(case, "rollout_logprobs"), lengths_of(case))


def masked_loss(case: dict[str, Any], logprobs: Tensor, importance: Tensor) -> Tensor:
    """DAPO's loss with weights on its terms, as TRL computes it."""
    advantages = flat(case, "advantages_per_sequence") * importance
    weights = weights_of(case, "token-mean")
    return ppo_clip(logprobs, flat(case, "old_logprobs"), advantages, weights, clip_low=0.2, clip_high=0.28).loss


def check_loss(case: dict[str, Any], importance: Tensor, variant: dict[str, Any]) -> None:
    logprobs = flat(case, "logprobs").requires_grad_()
    loss = masked_loss(case, logprobs, importance)
    assert float(loss.detach()) == pytest.approx(variant["loss"], abs=2e-7)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, float64(variant["grad_logprobs"])[mask(case)], rtol=0, atol=2e-7)


@each_case
def test_weights_by_token_and_response(case: dict[str, Any]) -> None:
    for variant in case["expected"]["verl_is_weights"]["variants"]:
        ratio = ratios(case, variant["level"])
        if isinstance(variant["threshold"], str):  # "0.5_2.0" is a band
            low, high = (float(bound) for bound in variant["threshold"].split("_"))
            weights = truncated(ratio, high=high) * within(ratio, low, high)
        else:
            weights = truncated(ratio, high=variant["threshold"])
        if variant["batch_normalize"]:  # divided by the mean over tokens, or over responses
            by_token = variant["level"] == "token"
            weights = weights / (
                weights.mean() if by_token else (row_sums(weights, lengths_of(case)) / lengths_of(case)).mean()
            )
        torch.testing.assert_close(weights, float64(variant["weights"])[mask(case)], rtol=0, atol=2e-7)
    for variant in case["expected"]["slime_is_weights"]["variants"]:
        ratio = ratios(case, "token")
        weights = truncated(ratio, variant["low"], variant["high"])
        if variant["kind"] == "icepop":
            weights = ratio * within(ratio, variant["low"], variant["high"])
        torch.testing.assert_close(weights, float64([*chain.from_iterable(variant["weights"])]), rtol=0, atol=2e-7)


@each_case
def test_weights_in_a_loss(case: dict[str, Any]) -> None:
    for variant in case["expected"]["trl_vllm_importance_sampling"]["variants"]:
        level, what = variant["mode"].split("_")
        low, high = variant["clip_min"] or 0.0, variant["clip_max"]
        ratio = ratios(case, level)
        weights = truncated(ratio, low, high) if what == "truncate" else ratio * within(ratio, low, high)
        expected = float64(variant["ratio"])
        expected = expected[mask(case)] if expected.dim() == 2 else expected.repeat_interleave(lengths_of(case))
        torch.testing.assert_close(weights, expected, rtol=0, atol=2e-7)
        check_loss(case, weights, variant)


@each_case
def test_the_band_by_token_and_response(case: dict[str, Any]) -> None:
    levels = {"token_k1": "token", "seq_sum_k1": "sequence", "seq_mean_k1": "geometric"}
    for variant in case["expected"]["verl_rejection_mask"]["variants"]:
        if variant["option"] not in levels:  # thresholds of k2 and k3
            continue
        bounds = [float(bound) for bound in variant["threshold"].split("_")]
        high, low = bounds[-1], bounds[0] if len(bounds) > 1 else 1 / bounds[0]
        # verl's band is for the inverse ratio
        kept = within(ratios(case, levels[variant["option"]]), 1 / high, 1 / low)
        assert kept.tolist() == (float64(variant["mask"])[mask(case)] > 0).tolist()
        assert float((~kept).double().mean()) == pytest.approx(variant["masked_fraction"], abs=2e-7)


@each_case
def test_the_off_policy_mask(case: dict[str, Any]) -> None:
    new, old, advantages = (flat(case, name) for name in ("logprobs", "old_logprobs", "advantages_per_sequence"))
    for variant in case["expected"]["trl_off_policy_sequence_mask"]["variants"]:
        limit = variant["off_policy_threshold"]
        kept = on_policy_enough(new, flat(case, "rollout_logprobs"), advantages, lengths_of(case), limit)
        by_row = [bool(row[0]) for row in torch.split(kept, case["lengths"])]
        assert by_row == [bool(keep) for keep in variant["keep_sequence"]]
        check_loss(case, kept.double(), variant)
    for variant in case["expected"]["slime_opsm"]["variants"]:
        kept = on_policy_enough(new, old, advantages, lengths_of(case), variant["delta"])
        assert kept.tolist() == [bool(keep) for keep in chain.from_iterable(variant["token_keep"])]


def test_the_off_policy_mask_goes_by_each_tokens_own_advantage() -> None:
    new, sampled = float64([-3, -3, -1, -1]), float64([-1, -1, -1, -1])
    advantages, lengths = float64([0, -1, -1, 1]), torch.tensor([2, 2])
    assert on_policy_enough(new, sampled, advantages, lengths, 1.9).tolist() == [True, False, True, True]
    assert on_policy_enough(new, sampled, advantages, lengths, 2.0).all()
    # what has become likelier is not off the policy
    assert on_policy_enough(sampled, new, advantages, lengths, 0.0).all()


@each_level
@settings(deadline=None, max_examples=15)
@for_all(st.integers(0, len(CASES_2) - 1), st.randoms(use_true_random=False))
def test_no_ratio_depends_on_the_other_rows(level: str, number: int, random: Any) -> None:
    case = CASES_2[number]
    new, old = (torch.split(flat(case, name), case["lengths"]) for name in ("old_logprobs", "rollout_logprobs"))
    order = random.sample(range(len(new)), random.randint(1, len(new)))
    found = ratio_by(
        level,
        torch.cat([new[row] for row in order]),
        torch.cat([old[row] for row in order]),
        lengths_of(case)[order],
    )
    whole = torch.split(ratios(case, level), case["lengths"])
    torch.testing.assert_close(found, torch.cat([whole[row] for row in order]), rtol=1e-12, atol=0)


@each_level
def test_equal_distributions_need_no_correction(level: str) -> None:
    logprobs = flat(CASES_2[0], "logprobs").requires_grad_()
    ratio = ratio_by(level, logprobs, logprobs.detach(), lengths_of(CASES_2[0]))
    assert ratio.tolist() == pytest.approx([1.0] * len(ratio), abs=0)
    assert within(ratio, 1.0, 1.0).all()
    assert not ratio.requires_grad


@each_level
def test_ratios_of_long_responses_stay_finite(level: str) -> None:
    for sign in (-1, 1):
        ratio = ratio_by(level, torch.full((5000,), 3.0 * sign), torch.zeros(5000), torch.tensor([5000]))
        assert bool(ratio.isfinite().all())
        assert bool((ratio > 0).all())


def test_importance_weights_correct_the_mean_and_are_capped() -> None:
    trainer, sampler = torch.log_softmax(float64([0, 1, 2]), 0), torch.log_softmax(float64([0.5, 1, 1.5]), 0)
    advantages, one_each = float64([1, -1, 3]), torch.ones(3, dtype=torch.int64)
    ratio = ratio_by("token", trainer, sampler, one_each)
    # with these weights, the sampler's draws have the trainer's expectation
    torch.testing.assert_close((sampler.exp() * ratio * advantages).sum(), (trainer.exp() * advantages).sum())
    ratio = ratio_by("token", float64([0.0, -3.0]), float64([-3.0, 0.0]), torch.tensor([2]))
    assert truncated(ratio, high=2.0).tolist() == [2.0, math.exp(-3)]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="the level is 'row'; it must be one of token, sequence"):
        ratio_by("row", torch.zeros(1), torch.zeros(1), torch.tensor([1]))
