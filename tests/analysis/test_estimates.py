"""Statistics against NumPy, pandas, brute force, and the truth that simulated batches were made from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.analysis.estimates import (
    LEAST_GROUPS,
    Estimate,
    GroupedSamples,
    Statistic,
    calibration,
    estimate,
    ranks,
    wilson,
)
from primecli.core.pairs import count_pairs


def estimate_one(statistic: Statistic, *, seed: int = 0, resamples: int = 400) -> Estimate:
    return estimate({"statistic": statistic}, seed=seed, resamples=resamples)["statistic"]


def batch(seed: int, groups: int, size: int = 4, signal: float = 1.0) -> tuple[GroupedSamples, np.ndarray, np.ndarray]:
    """Scores that follow the outcome by `signal`; prompts differ by much more, which ranks nothing within a group."""
    generator = np.random.default_rng(seed)
    outcomes = generator.integers(0, 2, groups * size).astype(float)
    offsets = np.repeat(3 * generator.normal(size=groups), size)
    scores = signal * outcomes + offsets + generator.normal(size=groups * size)
    return GroupedSamples(np.repeat(np.arange(groups), size)), scores, outcomes


labelled = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), min_size=1)


@settings(deadline=None, max_examples=60)
@given(labelled)
def test_auc_equals_counting(rows: list[tuple[int, int, bool]]) -> None:
    group, scores, right = (np.array(column) for column in zip(*rows, strict=True))
    ranked = [(s > t) + 0.5 * (s == t) for s in scores[right] for t in scores[~right]]
    auc = estimate_one(GroupedSamples(group).auc(scores.astype(float), right), resamples=2).value
    assert auc == (pytest.approx(np.mean(ranked)) if ranked else None)


def test_correlations_equal_those_of_numpy_and_pandas() -> None:
    groups, scores, outcomes = batch(1, groups=50)
    assert estimate_one(groups.correlation(scores, outcomes)).value == pytest.approx(
        np.corrcoef(scores, outcomes)[0, 1]
    )
    centred = [(v.reshape(-1, 4) - v.reshape(-1, 4).mean(1, keepdims=True)).ravel() for v in (scores, outcomes)]
    found = estimate_one(groups.correlation(groups.centre(scores), groups.centre(outcomes)))
    assert found.value == pytest.approx(np.corrcoef(*centred)[0, 1])
    wrong = outcomes == 0
    found = estimate_one(groups.correlation(scores, scores**2, wrong))
    assert found.value == pytest.approx(np.corrcoef(scores[wrong], scores[wrong] ** 2)[0, 1])
    assert found.items == wrong.sum()
    rounded = np.round(scores)  # with ties
    spearman = pd.DataFrame({"x": rounded, "y": outcomes}).rank().corr().loc["x", "y"]
    assert estimate_one(groups.correlation(ranks(rounded), ranks(outcomes))).value == pytest.approx(spearman)
    assert ranks(rounded).tolist() == pd.Series(rounded).rank().tolist()


def test_a_correlation_ignores_scale_and_offset() -> None:
    groups, scores, outcomes = batch(2, groups=20)
    expected = estimate_one(groups.correlation(scores, outcomes))
    for shift, scale in ((1e6, 1.0), (0.0, 1e-9), (-3e5, 1e3)):
        found = estimate_one(groups.correlation(shift + scale * scores, outcomes))
        assert found.value == pytest.approx(expected.value, abs=1e-6)
        assert found.low == pytest.approx(expected.low, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7e8])
def test_a_constant_has_no_correlation(constant: float) -> None:
    groups, scores, _ = batch(3, groups=20)
    assert estimate_one(groups.correlation(np.full(80, constant), scores)).value is None
    assert estimate_one(groups.correlation(groups.centre(np.repeat(scores[:20] + constant, 4)), scores)).value is None
    rounded = np.where(scores > 0, constant, np.nextafter(constant, 1e9)) if constant else np.zeros(80)
    assert estimate_one(groups.correlation(rounded, scores)).value is None


def test_a_contrast_is_over_groups_that_hold_both() -> None:
    groups = GroupedSamples(np.array([7, 7, 7, 3, 3, 5, 5]))
    scores = np.array([1.0, 2.0, 6.0, 10.0, 12.0, 100.0, 101.0])
    which = np.array([False, False, True, False, True, True, True])
    spread = np.sqrt(np.mean(np.array([-2.0, -1.0, 3.0, -1.0, 1.0, -0.5, 0.5]) ** 2))
    found = estimate_one(groups.contrast(scores, which))
    assert found.value == pytest.approx(((6 - 1.5) + (12 - 10)) / 2 / spread)
    assert (found.groups, found.items) == (2, 2)
    assert estimate_one(groups.contrast(scores, np.ones(7, dtype=bool))).value is None
    assert estimate_one(groups.contrast(np.ones(7), which)).value is None


def pair_accuracy(groups: GroupedSamples, scores: np.ndarray, outcomes: np.ndarray) -> Statistic:
    counts = count_pairs(scores, outcomes, groups.index)
    return groups.ratio(counts.correct, counts.pairs, items=int(counts.pairs.sum()), share=True)


def within(groups: GroupedSamples, scores: np.ndarray, outcomes: np.ndarray) -> Statistic:
    return groups.correlation(groups.centre(scores), groups.centre(outcomes))


def batch_auc(groups: GroupedSamples, scores: np.ndarray, outcomes: np.ndarray) -> Statistic:
    return groups.auc(scores, outcomes > 0.5)


@pytest.mark.parametrize(("statistic", "truth"), [(pair_accuracy, 0.5), (within, 0.0), (batch_auc, 0.5)])
@pytest.mark.parametrize("number", [24, 60])
def test_intervals_cover_the_truth_about_as_often_as_they_claim(
    statistic: Callable[[GroupedSamples, np.ndarray, np.ndarray], Statistic], truth: float, number: int
) -> None:
    """Uninformed scores: in 200 batches, 95% intervals should cover the truth about 190 times, and not always."""
    held = 0
    for seed in range(200):
        found = estimate_one(statistic(*batch(seed, groups=number, signal=0.0)), seed=seed, resamples=200)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 174 <= held <= 199


def test_a_share_of_1_is_not_certain() -> None:
    """Resampling groups that are all right always gives 1; it does not rule out that one in twenty fails."""
    scores, outcomes = np.tile([1.0, 0.0], 20), np.tile([1.0, 0.0], 20)
    low = estimate_one(pair_accuracy(GroupedSamples(np.repeat(np.arange(20), 2)), scores, outcomes)).low
    assert low is not None
    assert 0.8 < low < 0.95
    assert estimate_one(pair_accuracy(GroupedSamples(np.zeros(2)), scores[:2], outcomes[:2])).low == pytest.approx(
        wilson(1.0, 1)[0]
    )


def test_wilson_equals_the_textbook_example() -> None:
    low, high = wilson(0.1, 100)  # 10 of 100
    assert low == pytest.approx(0.0552, abs=1e-4)
    assert high == pytest.approx(0.1744, abs=1e-4)


def test_few_groups_have_no_interval() -> None:
    few, enough = (estimate_one(within(*batch(0, groups=number))) for number in (LEAST_GROUPS - 1, LEAST_GROUPS + 8))
    assert few.value is not None
    assert few.low is None
    assert enough.low is not None


def test_one_odd_response_among_equal_ones_counts_as_one_group() -> None:
    groups, scores, _ = batch(0, groups=50)
    lengths = np.full(200, 46.0)
    lengths[17] = 47
    assert estimate_one(groups.correlation(scores, lengths)).low is None
    found = estimate_one(groups.correlation(groups.centre(scores), groups.centre(lengths)))
    assert (found.groups, found.low) == (1, None)


def test_the_same_seed_gives_the_same_interval() -> None:
    assert estimate_one(within(*batch(0, groups=30)), seed=1) == estimate_one(within(*batch(0, groups=30)), seed=1)
    assert estimate_one(within(*batch(0, groups=30)), seed=1) != estimate_one(within(*batch(0, groups=30)), seed=2)


def test_calibration_bins() -> None:
    error, bins = calibration(np.array([0.05, 0.95, 0.95, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert error == pytest.approx((0.05 + abs(0.95 + 0.95 + 1.0 - 2.0)) / 4)
    assert [(found.start, found.items) for found in bins] == [(0.0, 1), (0.9, 3)]
    assert bins[1].predicted == pytest.approx(2.9 / 3)
    assert bins[1].observed == pytest.approx(2 / 3)
    generator = np.random.default_rng(0)
    predicted = generator.uniform(size=50_000)
    error, _ = calibration(predicted, (generator.uniform(size=50_000) < predicted).astype(float))
    assert error < 0.01


def test_the_calibration_error_is_the_one_that_updates_log() -> None:
    """Two implementations of one definition: they sum in a different order, and both numbers are recorded."""
    import torch

    from primecli.core.metrics import calibration_error

    generator = np.random.default_rng(0)
    scores, outcomes = 2 * generator.normal(size=300), generator.integers(0, 2, 300).astype(float)
    error, _ = calibration(1 / (1 + np.exp(-scores)), outcomes)
    assert error == pytest.approx(calibration_error(torch.tensor(scores), torch.tensor(outcomes)), rel=1e-12)
