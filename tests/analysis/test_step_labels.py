from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.analysis.step_labels import LabelledSteps, best_threshold, chance_f1, first_below, harmonic_mean
from primecli.analysis.step_scores import By
from primecli.models.steps import step_sums

CASES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "step_label_cases.json").read_text())
REFERENCE = {
    "prefix_sigmoid_grid01": (By.prefix, 0.0),
    "prefix_sigmoid": (By.prefix, -1.0),
    "step_sigmoid": (By.step, -1.0),
    "prefix_mean_sigmoid": (By.prefix_mean, -1.0),
    "step_mean_sigmoid": (By.step_mean, -1.0),
}
"""The score of each public search, and where its grid of thresholds begins."""


def made(rewards: Any, first_wrong: int = -1, tokens: Any = None) -> LabelledSteps:
    sums = np.asarray(rewards, dtype=np.float64)
    counts = np.ones(len(sums)) if tokens is None else np.asarray(tokens)
    return LabelledSteps("made", "p", first_wrong, sums, counts)


def f1_of(predictions: list[int | None], labels: list[int]) -> tuple[float, float, float]:
    """Both shares and F1, written plainly."""
    wrong = [guess == label for guess, label in zip(predictions, labels, strict=True) if label >= 0]
    right = [guess == label for guess, label in zip(predictions, labels, strict=True) if label < 0]
    found, passed = sum(wrong) / len(wrong), sum(right) / len(right)
    return found, passed, harmonic_mean(found, passed)


@pytest.mark.parametrize("method", REFERENCE)
@pytest.mark.parametrize("case", CASES["processbench_threshold_search"])
def test_the_public_search_of_a_threshold_gives_the_same(case: dict[str, Any], method: str) -> None:
    by, start = REFERENCE[method]
    # the public code divides means by the root of its beta of 0.001
    scale = 1 / np.sqrt(0.001) if "mean" in method else 1.0
    scores, labels = [], []
    for item in case["items"]:
        tokens = np.diff(item["prefix_tokens"], prepend=0)
        one = made(np.diff(item["reward"], prepend=0.0), item["label"], tokens)
        scores.append(scale * one.scores(by))
        labels.append(item["label"])
    grid = np.linspace(start, 1, case["num_thresholds"])
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.log(grid / (1 - grid))  # of thresholds for sigmoid(score)
    logits = np.nan_to_num(logits, nan=-1e300, neginf=-1e300, posinf=1e300)
    threshold, f1 = best_threshold(scores, labels, logits)
    expected = case["results"][method]
    assert f1 == pytest.approx(expected["f1"], abs=1e-12)
    assert 1 / (1 + np.exp(-threshold)) == pytest.approx(expected["threshold"], abs=1e-12)
    predictions = [first_below(one, threshold) for one in scores]
    assert f1_of([*predictions], labels)[2] == pytest.approx(f1, abs=1e-12)
    assert best_threshold(scores, labels)[1] >= f1 - 1e-12  # a grid can only miss


@pytest.mark.parametrize("case", CASES["processbench_f1"])
def test_the_public_f1_is_the_harmonic_mean_of_the_same_parts(case: dict[str, Any]) -> None:
    found, passed, f1 = f1_of(case["predictions"], case["labels"])
    assert [100 * value for value in (found, passed, f1)] == pytest.approx(
        [case["acc_error"], case["acc_correct"], case["f1"]], abs=1e-12
    )


@pytest.mark.parametrize("case", CASES["implicit_prm_step_scores"])
def test_the_public_scores_of_steps_are_the_same(case: dict[str, Any]) -> None:
    start, shift = case["sum_starts_at_token"], case["prompt_len"] - case["sum_starts_at_token"]
    for row, ratios in enumerate(case["log_ratio_prompt_and_response"]):
        ends = np.array(case["step_ends"][row]) + shift
        values = case["coef"] * np.array(ratios[start : start + ends[-1] + 1])
        one = made(step_sums(values, ends))
        prefix, single = one.scores(By.prefix), one.scores(By.step)
        assert prefix.tolist() == pytest.approx(case["step_prefix_scores"][row], abs=1e-12)
        assert single.tolist() == pytest.approx(case["step_single_scores"][row], abs=1e-12)
        assert prefix.min() == pytest.approx(case["response_score"]["accumulative"]["min"][row], abs=1e-12)
        assert single.mean() == pytest.approx(case["response_score"]["single"]["mean"][row], abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_is_better_than_the_one_that_is_found(seed: int) -> None:
    draws = np.random.default_rng(seed)
    # few distinct values, so that there are ties within responses and between them
    scores = [draws.integers(0, 6, size=draws.integers(1, 5)).astype(float) for _ in range(12)]
    scores.append(np.array([np.inf, 2.0]))
    labels = [-1, 0, *(int(draws.integers(-1, len(one))) for one in scores[2:])]
    tried = [-1.0, *np.arange(0, 6.25, 0.25).tolist(), 7.0]
    expected = [f1_of([first_below(one, limit) for one in scores], labels)[2] for limit in tried]
    threshold, f1 = best_threshold(scores, labels)
    assert f1 == pytest.approx(max(expected), abs=1e-12)
    assert f1_of([first_below(one, threshold) for one in scores], labels)[2] == pytest.approx(f1, abs=1e-12)
    first_best = tried[int(np.argmax(np.array(expected) > max(expected) - 1e-12))]
    assert first_best - 1 <= threshold <= first_best + 1  # the lowest of equally good ones


def test_a_step_at_the_threshold_is_not_wrong() -> None:
    scores = np.array([2.0, 0.5, 0.25])
    assert [first_below(scores, limit) for limit in (0.25, 0.5, 0.75, 3.0)] == [-1, 2, 1, 0]


def test_neighbouring_scores_leave_a_threshold_between() -> None:
    low = 1.0
    high = float(np.nextafter(low, 2))
    threshold, f1 = best_threshold([np.array([low]), np.array([high])], [0, -1])
    assert (f1, low < threshold <= high) == (1.0, True)


def test_one_kind_of_responses_is_not_enough() -> None:
    for label in (-1, 0):
        with pytest.raises(ValueError, match="with a wrong step and responses without"):
            best_threshold([np.array([1.0])], [label])


def test_an_outcome_model_calls_only_the_last_step_wrong() -> None:
    one = made([-5.0, 3.0, 1.0], 2)
    assert one.outcome_scores().tolist() == [np.inf, np.inf, -1.0]
    assert (first_below(one.outcome_scores(), 0.0), first_below(one.outcome_scores(), -2.0)) == (2, -1)


@pytest.mark.parametrize(
    ("rewards", "lowest"), [([1.0, 0.0], True), ([0.0, 1.0], False), ([0.0, 0.0], False), ([1.0], True)]
)
def test_whether_the_lowest_step_is_the_last(rewards: list[float], lowest: bool) -> None:
    assert made(rewards).last_is_lowest is lowest


def test_chance_is_the_best_that_guessing_can_do() -> None:
    steps = np.array([2, 3, 7])
    share = (1 / steps).mean()
    guesses = np.linspace(0, 1, 100_001)[1:-1]
    found, passed = guesses * share, 1 - guesses
    assert chance_f1(steps) == pytest.approx((2 * found * passed / (found + passed)).max(), abs=1e-9)
