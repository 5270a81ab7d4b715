from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.audit import Responses, auc, by_length, disagreements, health, longest_run, metrics, repeated_ngrams


def made(scores: object, outcomes: object, group: object, **columns: object) -> Responses:
    rows = len(np.asarray(scores))
    given_columns = {
        "lengths": np.arange(1.0, rows + 1),
        "truncated": np.zeros(rows, dtype=bool),
        "repeats": np.zeros(rows),
        "run": np.ones(rows, dtype=int),
        "duplicate": np.zeros(rows, dtype=bool),
        **columns,
    }
    groups = np.asarray(group)
    return Responses(
        scores=np.asarray(scores, dtype=float),
        outcomes=np.asarray(outcomes, dtype=float),
        group=groups,
        place=np.stack([np.zeros(rows, dtype=int), np.arange(rows)], axis=1),
        group_ids=[f"g{number}" for number in range(int(groups.max()) + 1)],
        prompts=["p"] * (int(groups.max()) + 1),
        paths=[Path("shard")],
        ungraded=0,
        **{name: np.asarray(values) for name, values in given_columns.items()},
    )


def batch(seed: int = 0, groups: int = 200, size: int = 4, signal: float = 1.0) -> Responses:
    generator = np.random.default_rng(seed)
    outcomes = generator.integers(0, 2, groups * size)
    offsets = np.repeat(3 * generator.normal(size=groups), size)  # prompts differ; that is no ordering within a group
    scores = signal * outcomes + offsets + generator.normal(size=groups * size)
    lengths = generator.integers(5, 50, groups * size).astype(float)
    return made(scores, outcomes, np.repeat(np.arange(groups), size), lengths=lengths)


def test_correlations_are_numpys() -> None:
    responses = batch()
    found = metrics(responses)
    expected = np.corrcoef(responses.scores, responses.outcomes)[0, 1]
    assert found["correlation"].value == pytest.approx(expected)
    scores, outcomes = (
        (values.reshape(-1, 4) - values.reshape(-1, 4).mean(1, keepdims=True)).ravel()
        for values in (responses.scores, responses.outcomes)
    )
    assert found["group-correlation"].value == pytest.approx(np.corrcoef(scores, outcomes)[0, 1])
    wrong = responses.outcomes == 0
    expected = np.corrcoef(responses.scores[wrong], responses.lengths[wrong])[0, 1]
    assert found["wrong-length-correlation"].value == pytest.approx(expected)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of scores that know nothing the pair accuracy is a half; 95% intervals of 60 batches miss it about 3 times."""
    missed = 0
    for seed in range(60):
        found = metrics(batch(seed, groups=60, signal=0.0), seed=seed)["pair-accuracy"]
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 9


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=12))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, right = np.array([score for score, _ in rows], dtype=float), np.array([label for _, label in rows])
    pairs = [(good > bad) + 0.5 * (good == bad) for good in scores[right] for bad in scores[~right]]
    assert auc(scores, right) == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_pair_accuracy_is_within_groups_and_auc_is_not() -> None:
    found = metrics(made([1, 0, 11, 10], [1, 0, 1, 0], [0, 0, 1, 1]))
    assert found["pair-accuracy"].value == 1
    assert found["auc"].value == 0.75


def test_what_cannot_be_computed_has_no_value() -> None:
    found = metrics(made([1, 2], [1, 1], [0, 0]))
    assert found["pair-accuracy"].value is None
    assert found["auc"].value is None
    assert found["reward-wrong"].value is None
    assert metrics(made([1, 1], [1, 0], [0, 0]))["correlation"].value is None
    assert "pair-accuracy" not in health(found)


def test_repeats() -> None:
    assert repeated_ngrams(np.array([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(1 / 5)
    assert repeated_ngrams(np.arange(100)) == 0
    assert repeated_ngrams(np.array([7] * 103)) == pytest.approx(0.99)
    assert repeated_ngrams(np.array([151935, 151934] * 50)) == pytest.approx(1 - 2 / 97)
    assert repeated_ngrams(np.array([1, 2, 3])) == 0
    assert [longest_run(np.array(ids)) for ids in ([1], [1, 1, 2], [2, 1, 1, 1])] == [1, 2, 3]


def test_a_reward_that_prefers_repeats_is_called_bad() -> None:
    responses = made([0, 1, 0, 2], [1, 0, 1, 0], [0, 0, 1, 1], repeats=[0, 0.95, 0, 0.9])
    found = metrics(responses)
    assert found["repeats"].value == 0.5
    assert found["repeats-preferred"].value == pytest.approx(1.5)
    assert (health(found)["repeats"], health(found)["repeats-preferred"]) == ("bad", "bad")
    assert health(found)["pair-accuracy"] == "bad"
    assert health(found)["truncation"] == "ok"


def test_the_strongest_disagreements_come_first() -> None:
    responses = made([1, 2, 0, 9, 3, 1], [1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2])
    first, second = disagreements(responses, top=5)  # group 2 agrees
    assert (first.group_id, first.wrong_score, first.right_score) == ("g1", 9, 0)
    assert (first.wrong_row, first.right_row, first.accuracy) == ((Path("shard"), 3), (Path("shard"), 2), 0.5)
    assert second.group_id == "g0"
    assert [found.group_id for found in disagreements(responses, top=1)] == ["g1"]


def test_quarters_by_length() -> None:
    responses = made(range(8), [0, 1] * 4, [0] * 8, lengths=np.arange(8.0, 0, -1))
    rows = by_length(responses)
    assert [(row["tokens_from"], row["tokens_to"]) for row in rows] == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert rows[0]["reward_per_token"] == pytest.approx((7 + 6) / 3)
    assert rows[0]["accuracy"] == 0.5
