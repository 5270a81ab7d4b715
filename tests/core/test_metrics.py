from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from primecli.core.metrics import (
    calibration_error,
    effective_sample_size,
    explained_variance,
    separation,
    variance_share,
    weighted_pair_accuracy,
)
from tests.core.reference import CASES, NAMES, float64, given, group_index, mask


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_pair_accuracy_as_the_port_has_it(case: dict[str, Any]) -> None:
    expected = case["expected"]["prm_pair_accuracy"]
    scores = (given(case, "prm_minus_ref_logprobs") * mask(case)).sum(-1)
    accuracy = weighted_pair_accuracy(scores, float64(expected["labels"]), group_index(case))
    assert accuracy == pytest.approx(expected["value"], abs=1e-5)


def test_pairs_weigh_by_the_difference_of_their_outcomes() -> None:
    scores, outcome = float64([3, 1, 2]), float64([1.0, 0.5, 0.0])
    together = torch.tensor([0, 0, 0])
    assert weighted_pair_accuracy(scores, outcome, together) == pytest.approx(1.5 / 2)
    assert weighted_pair_accuracy(torch.ones(3), outcome, together) == 0.5  # ties


def test_the_mean_over_groups_counts_those_without_pairs() -> None:
    scores, outcome = float64([1, 2, 3, 4]), float64([0, 1, 1, 1])
    groups = torch.tensor([0, 0, 1, 1])
    assert weighted_pair_accuracy(scores, outcome, groups) == 0.75
    assert weighted_pair_accuracy(scores, outcome, groups, without_pairs=0.0) == 0.5


@settings(deadline=None, max_examples=30)
@for_all(st.randoms(use_true_random=False))
def test_row_order_changes_no_pair(random: Any) -> None:
    case = CASES[3]
    scores = (given(case, "prm_minus_ref_logprobs") * mask(case)).sum(-1)
    labels, groups = given(case, "outcome_reward"), group_index(case)
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = weighted_pair_accuracy(scores[order], labels[order], groups[order])
    assert shuffled == pytest.approx(weighted_pair_accuracy(scores, labels, groups), rel=1e-12)


def test_calibration_worked_by_hand() -> None:
    # predictions 0.9, 0.9 (bin 9, one of them correct) and 0.2 (bin 2, wrong)
    scores = float64([math.log(9), math.log(9), math.log(0.25)])
    ours = calibration_error(scores, float64([1, 0, 0]))
    assert ours == pytest.approx((2 * abs(0.9 - 0.5) + abs(0.2 - 0)) / 3)
    assert calibration_error(float64([40.0, -40.0]), float64([1, 0])) == pytest.approx(0, abs=1e-12)


def test_scores_drawn_from_their_own_probabilities_are_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20000, generator=generator, dtype=torch.float64)
    labels = torch.bernoulli(scores.sigmoid(), generator=generator)
    assert calibration_error(scores, labels) < 0.02
    assert calibration_error(4 * scores, labels) > 0.1


def test_explained_variance_and_shares() -> None:
    returns = float64([1, 2, 3, 4])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full_like(returns, 7), returns) == 0
    assert math.isnan(explained_variance(returns, torch.ones(4)))
    noise = float64([1, -1, -1, 1])
    assert variance_share(noise, noise + returns) + variance_share(returns, noise + returns) == pytest.approx(1)
    assert variance_share(returns + 9, 3 * returns) == pytest.approx(1 / 3)  # a constant offset has no variance
    assert math.isnan(variance_share(returns, torch.ones(4)))


def test_effective_sample_size_of_some_that_count() -> None:
    log_weights = float64([0.0] * 25 + [-20.0] * 75)
    assert effective_sample_size(log_weights) == pytest.approx(0.25, abs=1e-6)


def test_effective_sample_size_is_kishs_formula() -> None:
    rng = np.random.default_rng(0)
    for spread in (0.01, 1.0, 5.0):
        log_weights = rng.normal(0, spread, size=500)
        weights = np.exp(log_weights)
        exact = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
        assert effective_sample_size(torch.tensor(log_weights)) == pytest.approx(exact, rel=1e-12)


def test_effective_sample_size_of_a_common_factor_changes_nothing_and_nothing_overflows() -> None:
    log_weights = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    assert effective_sample_size(log_weights + 2000) == pytest.approx(effective_sample_size(log_weights), rel=1e-9)


def test_equal_weights_are_all_effective_and_one_of_many_is_one() -> None:
    assert effective_sample_size(torch.full((10,), -3.0)) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([100.0, *[0.0] * 9])) == pytest.approx(0.1)


def test_separation_is_a_difference_of_means_in_standard_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, generator=generator, dtype=torch.float64)
    labels = (torch.arange(40) % 3 == 0).double()
    right, wrong = scores[labels == 1], scores[labels == 0]
    pooled = ((len(right) - 1) * right.var() + (len(wrong) - 1) * wrong.var()) / (len(scores) - 2)
    found = separation(scores, labels)
    assert found == pytest.approx(float((right.mean() - wrong.mean()) / pooled.sqrt()))
    assert separation(7 * scores + 3, labels) == pytest.approx(found)
    assert separation(-scores, labels) == pytest.approx(-(found or 0))


def test_separation_of_what_cannot_be_separated() -> None:
    assert separation(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)) is None
    assert separation(torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 0.0])) is None
    assert separation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])) is None
