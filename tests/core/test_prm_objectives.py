"""The objectives of the PRM against published values and their gradients, and what has to hold for any batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from primecli.core.losses import prm_cross_entropy
from primecli.core.prm_objectives import (
    balanced_logistic,
    group_accuracy,
    prefix_hits,
    prefix_values,
    prm_balanced,
    prm_prefix,
)
from primecli.core.registry import BALANCES
from tests.core.reference import float64, given, group_index, mask
from tests.core.reference_2 import CASES_2, NAMES_2

each_case = pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)


def balance_of(variant: dict[str, Any]) -> tuple[str, ...]:
    return (*(["boundary"] if variant["adb"] else []), *(["weight"] if variant["dlw"] else []))


def check(case: dict[str, Any], variant: dict[str, Any], loss: Callable[[Tensor], Tensor]) -> None:
    """Compares a loss of the log-ratios, and its gradient, with a variant of a case."""
    ratios = given(case, "prm_minus_ref_logprobs").requires_grad_()
    value = loss(ratios)
    (gradient,) = torch.autograd.grad(value, ratios)
    assert float(value.detach()) == pytest.approx(variant["loss"], abs=1e-6, rel=0)
    expected = float64(variant["grad_prm_minus_ref_logprobs"])
    torch.testing.assert_close(gradient * mask(case), expected * mask(case), atol=1e-6, rtol=0)
    assert not gradient[~mask(case)].any()


@each_case
def test_prefix_objective(case: dict[str, Any]) -> None:
    outcomes = given(case, "outcome_reward")
    accuracy = group_accuracy(outcomes, group_index(case))
    for variant in case["expected"]["ipvrm_prefix_loss"]["variants"]:

        def loss(ratios: Tensor, variant: dict[str, Any] = variant) -> Tensor:
            return prm_prefix(
                variant["beta"] * ratios,
                mask(case),
                outcomes,
                accuracy,
                denominator=len(outcomes),
                margin=variant["base_margin"],
                balance=balance_of(variant),
            )

        check(case, variant, loss)


@each_case
def test_prefix_objective_of_one_response_is_its_share_of_the_offline_one(case: dict[str, Any]) -> None:
    """The offline objective is a mean over tokens, so that of each response weighs its length over all tokens."""
    outcomes, lengths = given(case, "outcome_reward"), mask(case).sum(-1)
    accuracy = group_accuracy(outcomes, group_index(case))
    for variant in case["expected"]["ipvrm_prefix_loss_offline"]["variants"]:

        def by_tokens(ratios: Tensor, variant: dict[str, Any] = variant) -> Tensor:
            return torch.stack(
                [
                    prm_prefix(
                        variant["beta"] * ratios[row : row + 1],
                        mask(case)[row : row + 1],
                        outcomes[row : row + 1],
                        accuracy[row : row + 1],
                        denominator=float(lengths.sum() / lengths[row]),
                        margin=variant["margin"],
                    )
                    for row in range(len(lengths))
                ]
            ).sum()

        check(case, variant, by_tokens)
        hits = prefix_hits(variant["beta"] * given(case, "prm_minus_ref_logprobs"), mask(case), outcomes)
        assert float(hits.sum() / lengths.sum()) == pytest.approx(variant["prefix_accuracy"], abs=1e-6, rel=0)


@each_case
def test_balanced_cross_entropy(case: dict[str, Any]) -> None:
    outcomes = given(case, "outcome_reward")
    accuracy = group_accuracy(outcomes, group_index(case))
    for variant in case["expected"]["implicit_prm_loss_weighted"]["variants"]:

        def loss(ratios: Tensor, variant: dict[str, Any] = variant) -> Tensor:
            return prm_balanced(
                (variant["beta"] * ratios * mask(case)).sum(-1),
                outcomes,
                accuracy,
                denominator=len(outcomes),
                margin=variant["base_margin"] or 0.0,
                balance=balance_of(variant),
            )

        check(case, variant, loss)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random rewards (8, 6) with their mask, fractional outcomes, and groups in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (8,), generator=generator)
    inside = torch.arange(6)[None, :] < lengths[:, None]
    rewards = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    outcomes = torch.randint(0, 5, (8,), generator=generator).double() / 4
    groups = torch.randint(0, 3, (8,), generator=generator)
    groups[:3] = torch.arange(3)
    return rewards, inside, outcomes, groups


@settings(deadline=None, max_examples=25)
@for_all(st.integers(0, 10**6))
def test_neither_the_order_of_rows_nor_padding_nor_micro_batches_change_it(seed: int) -> None:
    rewards, inside, outcomes, groups = batch(seed)
    accuracy = group_accuracy(outcomes, groups)
    whole = prm_prefix(rewards, inside, outcomes, accuracy, denominator=8, balance=BALANCES)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    shuffled = group_accuracy(outcomes[order], groups[order])
    torch.testing.assert_close(shuffled, accuracy[order])
    noise = torch.where(inside, rewards, torch.full_like(rewards, 7.0))  # what padding holds means nothing
    wider = torch.cat([noise, torch.full((8, 2), -3.0, dtype=torch.float64)], -1)
    mask_of_wider = torch.cat([inside, torch.zeros(8, 2, dtype=torch.bool)], -1)
    parts = [
        prm_prefix(wider[rows], mask_of_wider[rows], outcomes[rows], accuracy[rows], denominator=8, balance=BALANCES)
        for rows in torch.split(order, 3)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@settings(deadline=None, max_examples=25)
@for_all(st.integers(0, 10**6), st.floats(0, 5), st.sampled_from([(), ("boundary",), ("weight",), BALANCES]))
def test_a_fractional_outcome_is_a_mixture_of_right_and_wrong(
    seed: int, margin: float, balance: tuple[str, ...]
) -> None:
    rewards, _, outcomes, groups = batch(seed)
    accuracy = group_accuracy(outcomes, groups)
    one = torch.ones_like(outcomes)
    sides = [balanced_logistic(rewards[:, 0], y, accuracy, margin=margin, balance=balance) for y in (0 * one, one)]
    found = balanced_logistic(rewards[:, 0], outcomes, accuracy, margin=margin, balance=balance)
    torch.testing.assert_close(found, (1 - outcomes) * sides[0] + outcomes * sides[1])


@settings(deadline=None, max_examples=25)
@for_all(st.integers(0, 10**6))
def test_both_sides_of_a_group_weigh_the_same_and_the_group_as_much_as_others(seed: int) -> None:
    _, _, outcomes, groups = batch(seed)
    accuracy = group_accuracy(outcomes, groups)
    zero = torch.zeros(8, dtype=torch.float64)
    loss = balanced_logistic(zero, outcomes, accuracy, balance=("weight",)) / math.log(2)  # the weights themselves
    right = balanced_logistic(zero - 1e3, outcomes, accuracy, balance=("weight",)) / 1e3  # the part of the right ones
    for group in range(3):
        rows = groups == group
        assert float(loss[rows].mean()) == pytest.approx(1)
        if 0 < float(accuracy[rows][0]) < 1:
            assert float(right[rows].mean()) == pytest.approx(0.5)


def test_without_margin_and_balance_the_sum_gives_the_cross_entropy() -> None:
    rewards, inside, outcomes, groups = batch(0)
    scores = (rewards * inside).sum(-1)
    accuracy = group_accuracy(outcomes, groups)
    plain = prm_cross_entropy(scores, outcomes, denominator=8)
    torch.testing.assert_close(prm_balanced(scores, outcomes, accuracy, denominator=8), plain)


def test_the_boundary_moves_by_the_log_odds_of_the_group() -> None:
    """With the boundary, values of 0 cost what values at the log-odds of the group cost without it."""
    outcomes, accuracy = float64([1, 0, 0, 0]), float64([0.25] * 4)
    zero = torch.zeros(4, dtype=torch.float64)
    moved = balanced_logistic(zero, outcomes, accuracy, margin=2.0, balance=("boundary",))
    plain = balanced_logistic(torch.full_like(zero, math.log(1 / 3)), outcomes, accuracy, margin=2.0)
    torch.testing.assert_close(moved, plain)
    alone = balanced_logistic(torch.zeros(1), torch.ones(1), torch.ones(1), balance=("boundary",))
    assert float(alone) == pytest.approx(math.log1p(1e-6), rel=1e-3)  # all right: nothing is left to learn


def test_a_later_token_cannot_change_the_value_of_an_earlier_prefix() -> None:
    rewards = torch.randn(1, 5, dtype=torch.float64).requires_grad_()
    inside = torch.tensor([[True, True, True, True, False]])
    values = prefix_values(rewards, inside)
    for token in range(4):
        (gradient,) = torch.autograd.grad(values[0, token], rewards, retain_graph=True)
        expected = [1 / (token + 1)] * (token + 1) + [0.0] * (4 - token)
        torch.testing.assert_close(gradient, float64([expected]))


def test_an_unknown_balance_is_named() -> None:
    with pytest.raises(ValueError, match="balance has margin; it may have boundary, weight"):
        balanced_logistic(torch.zeros(1), torch.ones(1), torch.ones(1), balance=("margin",))
