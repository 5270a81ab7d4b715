from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from primecli.core.losses import pair_accuracy, ppo_clip, prm_cross_entropy
from tests.core.reference import CASES, NAMES, given, mask

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)


@each_case
def test_prm_cross_entropy(case: dict[str, Any]) -> None:
    expected = case["expected"]["prm_ce_loss"]
    scores = (expected["beta"] * given(case, "prm_minus_ref_logprobs") * mask(case)).sum(-1)
    outcome = given(case, "outcome_reward")
    assert float(prm_cross_entropy(scores, outcome, denominator=len(outcome))) == pytest.approx(
        expected["loss"], abs=1e-5
    )


@each_case
def test_ppo_clip(case: dict[str, Any]) -> None:
    expected = case["expected"]["ppo_clip_loss"]
    tokens = int(mask(case).sum())
    ours = ppo_clip(
        given(case, "logprobs"),
        given(case, "old_logprobs"),
        given(case, "advantages"),
        mask(case),
        denominator=tokens,
        clip_low=expected["clip_low"],
        clip_high=expected["clip_high"],
        dual_clip=expected["dual_clip"],
    )
    assert float(ours.loss) == pytest.approx(expected["loss"], abs=1e-5)
    assert float(ours.clipped) / tokens == pytest.approx(expected["clip_fraction"], abs=1e-6)
    assert float(ours.kl) / tokens == pytest.approx(expected["approx_kl"], abs=1e-6)
    assert float(ours.dual_clipped) / tokens == pytest.approx(expected["dual_clip_fraction"], abs=1e-6)


def test_ppo_clip_worked_by_hand() -> None:
    # ratios 2, 0.5, 2, 10 with advantages 1, 1, -1, -1
    logprobs = torch.tensor([2.0, 0.5, 2.0, 10.0], dtype=torch.float64).log()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    ours = ppo_clip(
        logprobs, torch.zeros(4).double(), advantages, torch.ones(4).bool(), denominator=1, clip_high=0.3, dual_clip=3
    )
    # clipped at 1.3; free below for a gain; free above for a loss; the last bounded by the dual clip
    assert float(ours.loss) == pytest.approx(-1.3 - 0.5 + 2.0 + 3.0)
    assert (int(ours.clipped), int(ours.dual_clipped)) == (1, 1)


def numeric_gradient(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    gradient = torch.zeros_like(at)
    for place in range(at.numel()):
        shift = torch.zeros_like(at).view(-1)
        shift[place] = step
        shift = shift.view_as(at)
        gradient.view(-1)[place] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_ppo_clip_gradient(dual_clip: float | None) -> None:
    case = CASES[0]

    def loss(logprobs: Tensor) -> Tensor:
        return ppo_clip(
            logprobs,
            given(case, "old_logprobs"),
            given(case, "advantages"),
            mask(case),
            denominator=int(mask(case).sum()),
            dual_clip=dual_clip,
        ).loss

    logprobs = given(case, "logprobs").requires_grad_()
    (analytic,) = torch.autograd.grad(loss(logprobs), logprobs)
    torch.testing.assert_close(analytic, numeric_gradient(loss, logprobs.detach()), rtol=1e-5, atol=1e-9)
    assert not analytic[~mask(case)].any()


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    case = CASES[1]
    logprobs = given(case, "logprobs").requires_grad_()
    tokens = int(mask(case).sum())
    clip = ppo_clip(logprobs, logprobs.detach(), given(case, "advantages"), mask(case), denominator=tokens).loss
    reinforce = -(given(case, "advantages") * logprobs * mask(case)).sum() / tokens
    torch.testing.assert_close(torch.autograd.grad(clip, logprobs), torch.autograd.grad(reinforce, logprobs))


def test_prm_cross_entropy_gradient_takes_soft_labels() -> None:
    scores = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0.25, 0.0, 1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(prm_cross_entropy(scores, labels, denominator=3), scores)
    torch.testing.assert_close(gradient, (scores.detach().sigmoid() - labels) / 3)


@each_case
def test_micro_batches_add_up(case: dict[str, Any]) -> None:
    logprobs = given(case, "logprobs").requires_grad_()
    tokens = int(mask(case).sum())

    def part(rows: slice) -> Tensor:
        return ppo_clip(
            logprobs[rows],
            given(case, "old_logprobs")[rows],
            given(case, "advantages")[rows],
            mask(case)[rows],
            denominator=tokens,
        ).loss

    (whole,) = torch.autograd.grad(part(slice(None)), logprobs)
    (parts,) = torch.autograd.grad(part(slice(0, 2)) + part(slice(2, 5)) + part(slice(5, None)), logprobs)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_micro_batches_of_the_prm_loss_add_up() -> None:
    scores = torch.tensor([0.3, -2.0, 5.0, 1.0], dtype=torch.float64)
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    whole = prm_cross_entropy(scores, labels, denominator=4)
    parts = [prm_cross_entropy(scores[rows], labels[rows], denominator=4) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), whole)


def test_pair_accuracy_counts_within_groups_only() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0])
    outcome = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert pair_accuracy(scores, outcome, torch.tensor([0, 1, 1, 0])) == (0, 2)
    assert pair_accuracy(scores, outcome, torch.tensor([0, 0, 0, 0])) == (0, 4)
    assert pair_accuracy(scores, 1 - outcome, torch.tensor([0, 0, 0, 0])) == (3, 4)
