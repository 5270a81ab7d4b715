"""Against brute force over all subsets, and against values of public implementations."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from primecli.analysis.at_k import best_of_k, majority_at_k, pass_at_k, weighted_majority
from tests.conftest import EVALUATION_CASES

EXACT = 1e-12


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return dict(json.loads(EVALUATION_CASES.read_text()))


def test_pass_at_k_is_that_of_the_reference(golden: dict[str, Any]) -> None:
    for case in golden["pass_at_k"]:
        n, c = np.array(case["n"]), np.array(case["c"])
        for k, values in case["values"].items():
            ours = pass_at_k(n, c, int(k))
            enough = n >= int(k)  # below that the reference says 1 or 0, whichever the samples are
            np.testing.assert_allclose(ours[enough], np.array(values)[enough], rtol=0, atol=EXACT)
            assert np.isnan(ours[~enough]).all()


def test_the_majority_of_all_samples_is_that_of_the_reference(golden: dict[str, Any]) -> None:
    checked = 0
    for case in golden["majority_at_k"]:
        for question in case["questions"]:
            for k, value in question["tie_average"].items():
                counts = Counter(answer for answer in question["answers"][: int(k)] if answer is not None)
                right = [float(answer == question["ground_truth"]) for answer in counts]
                ours = majority_at_k(list(counts.values()), right, int(k) - counts.total())
                assert ours[-1] == pytest.approx(value, abs=EXACT)
                checked += 1
    assert checked >= 20


@pytest.mark.parametrize("k", ["1", "2", "4"])
def test_best_of_n_and_majorities_are_those_of_the_reference(golden: dict[str, Any], k: str) -> None:
    for case in golden["best_of_n"]:
        values: dict[str, list[float]] = {"best_of_n": [], "weighted_majority": [], "pass_at_k": []}
        for index in sorted({item["idx"] for item in case["items"]}):
            items = [item for item in case["items"] if item["idx"] == index]
            items = sorted(items, key=lambda item: -item["logprobs"])[: int(k)]  # the reference takes the likeliest k
            outcomes = np.array([float(item["correctness"]) for item in items])
            scores = np.array([item["score"] for item in items])
            texts = list(dict.fromkeys(item["extracted_output"] for item in items))
            answers = [texts.index(item["extracted_output"]) for item in items]
            right = [float(text == items[0]["reference"]) for text in texts]
            values["best_of_n"].append(best_of_k(scores, outcomes)[-1])
            values["weighted_majority"].append(weighted_majority(answers, 1 / (1 + np.exp(-scores)), right))
            values["pass_at_k"].append(pass_at_k(np.array([len(items)]), np.array([outcomes.sum()]), len(items))[0])
        for name, found in values.items():
            assert round(100 * float(np.mean(found)), 1) == case["metrics_percent_rounded_to_0_1"][name][k], name


@pytest.mark.parametrize("number", range(40))
def test_against_all_subsets(number: int) -> None:
    generator = np.random.default_rng(number)
    n = int(generator.integers(1, 9))
    answers = generator.integers(-1, 4, size=n).tolist()  # -1 for none
    right = generator.integers(0, 2, size=4).astype(float).tolist()
    scores = generator.integers(0, 4, size=n) / 2  # with ties
    outcomes = np.array([right[answer] if answer >= 0 else 0.0 for answer in answers])
    counts = Counter(answer for answer in answers if answer >= 0)
    majority = majority_at_k(list(counts.values()), [right[answer] for answer in counts], n - counts.total())
    best = best_of_k(scores, outcomes)
    for k in range(1, n + 1):
        passed, voted, picked = [], [], []
        for subset in combinations(range(n), k):
            passed.append(float(any(outcomes[index] for index in subset)))
            votes = Counter(answers[index] for index in subset if answers[index] >= 0)
            winners = [answer for answer, count in votes.items() if count == max(votes.values())]
            voted.append(float(np.mean([right[answer] for answer in winners])) if winners else 0.0)
            top = max(scores[index] for index in subset)
            picked.append(float(np.mean([outcomes[index] for index in subset if scores[index] == top])))
        assert pass_at_k(np.array([n]), np.array([outcomes.sum()]), k)[0] == pytest.approx(np.mean(passed), abs=EXACT)
        assert majority[k - 1] == pytest.approx(np.mean(voted), abs=EXACT)
        assert best[k - 1] == pytest.approx(np.mean(picked), abs=EXACT)


def test_many_samples_stay_exact() -> None:
    """C(256, 128) is beyond 2^53; two answers of equal weight win half of the time, by symmetry."""
    for k, value in enumerate(majority_at_k([128, 128], [1.0, 0.0]), start=1):
        assert value == pytest.approx(0.5, abs=EXACT), k
    scores = np.arange(256.0)
    assert best_of_k(scores, (scores >= 128).astype(float))[-1] == pytest.approx(1.0, abs=EXACT)


def test_the_weighted_majority() -> None:
    weights = np.array([0.5, 0.5, 0.9, 0.2])
    assert weighted_majority([0, 0, 1, None], weights, [1.0, 0.0]) == 1.0
    assert weighted_majority([0, None, 1, 1], weights, [1.0, 0.0]) == 0.0
    assert weighted_majority([0, 1, None, None], weights, [1.0, 0.0]) == 0.5  # a tie
    assert weighted_majority([None] * 4, weights, []) == 0.0
