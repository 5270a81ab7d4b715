from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from primecli.analysis.audit import (
    HEALTH,
    METRICS,
    SECTIONS,
    UNITS,
    Bound,
    by_kind,
    by_length,
    disagreements,
    health,
    metrics,
)
from primecli.analysis.estimates import Estimate
from primecli.analysis.responses import Responses


def made(scores: object, outcomes: object, group: object, **columns: object) -> Responses:
    rows = len(np.asarray(scores))
    groups = np.asarray(group)
    given: dict[str, Any] = {
        "lengths": np.arange(1, rows + 1),
        "truncated": np.zeros(rows, dtype=bool),
        "degenerate": np.zeros(rows, dtype=bool),
        "last_lowest": np.full(rows, np.nan),
        "tokens": np.arange(rows, dtype=np.uint64),
        **columns,
    }
    arrays: dict[str, Any] = {name: np.asarray(values) for name, values in given.items()}
    return Responses(
        scores=np.asarray(scores, dtype=float),
        outcomes=np.asarray(outcomes, dtype=float),
        group=groups,
        shard=np.zeros(rows, dtype=int),
        row=np.arange(rows),
        group_ids=[f"g{number}" for number in range(int(groups.max()) + 1)],
        shards=[],
        **arrays,
    )


def values(responses: Responses) -> dict[str, float | None]:
    return {name: found.value for name, found in metrics(responses).items()}


def test_every_metric_by_hand() -> None:
    """Two groups whose scores are far apart: ranked correctly within each but for a tie, and hardly over the batch."""
    found = values(
        made(
            [3.0, 1.0, 1.0, 13.0, 13.0],
            [1, 0, 0, 1, 0],
            [0, 0, 0, 1, 1],
            lengths=[3, 2, 1, 5, 4],
            truncated=[False, False, True, False, False],
            degenerate=[False, True, False, False, False],
            last_lowest=[1.0, np.nan, 0.0, 1.0, np.nan],
            tokens=np.array([1, 5, 5, 9, 9], dtype=np.uint64),
        )
    )
    sigmoid = 1 / (1 + np.exp(-np.array([3.0, 1.0, 1.0, 13.0, 13.0])))
    errors = sigmoid - [1, 0, 0, 1, 0]
    centred = np.array([4, -2, -2, 0, 0]) / 3
    spread = np.sqrt(np.mean(centred**2))
    expected = {
        "pair-accuracy": 2.5 / 3,
        "group-auc": (1 + 0.5) / 2,
        "group-correlation": np.corrcoef(centred, [2 / 3, -1 / 3, -1 / 3, 0.5, -0.5])[0, 1],
        "correlation": np.corrcoef([3, 1, 1, 13, 13], [1, 0, 0, 1, 0])[0, 1],
        "spearman": np.corrcoef([3, 1.5, 1.5, 4.5, 4.5], [4.5, 2, 2, 4.5, 2])[0, 1],
        "auc": (2 + 2.5) / 6,
        "calibration-error": (abs(errors[1] + errors[2]) + abs(errors[0] + errors[3] + errors[4])) / 5,
        "brier": np.mean(errors**2),
        "reward-right": 8.0,
        "reward-wrong": 5.0,
        "last-lowest": 2 / 3,
        "length-correlation": np.corrcoef([3, 1, 1, 13, 13], [3, 2, 1, 5, 4])[0, 1],
        "group-length-correlation": np.corrcoef(centred, [1, 0, -1, 0.5, -0.5])[0, 1],
        "wrong-length-correlation": np.corrcoef([1, 1, 13], [2, 1, 4])[0, 1],
        "repeats": 0.2,
        "repeats-preferred": (1 - 2) / spread,
        "duplicates": 0.8,
        "distinct": (2 / 3 + 1 / 2) / 2,
        "truncation": 0.2,
        "truncation-preferred": (1 - 2) / spread,
    }
    assert list(found) == list(METRICS)
    assert found == pytest.approx(expected)


def test_a_group_with_one_outcome_does_not_count_in_the_correlation_within_groups() -> None:
    two = metrics(made([1, 0, 2, 3], [1, 0, 1, 0], [0, 0, 1, 1]))["group-correlation"]
    three = metrics(made([1, 0, 2, 3, 50, 90], [1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2]))["group-correlation"]
    assert (three.value, three.groups, three.items) == (two.value, 2, 4)


def test_what_cannot_be_computed_has_no_value() -> None:
    found = values(made([1, 2], [1, 1], [0, 0]))
    for name in (
        "pair-accuracy",
        "group-auc",
        "group-correlation",
        "correlation",
        "auc",
        "reward-wrong",
        "last-lowest",
    ):
        assert found[name] is None
    assert values(made([1, 1], [1, 0], [0, 0]))["correlation"] is None
    verdicts = health(metrics(made([1, 2], [1, 1], [0, 0])))
    assert "pair-accuracy" not in verdicts
    assert verdicts["truncation"]["verdict"] == "ok"


def test_bounds_units_and_sections_name_metrics() -> None:
    assert {*HEALTH, *UNITS, *SECTIONS.values()} <= set(METRICS)


def test_verdicts_and_those_that_the_interval_allows() -> None:
    below, beyond = Bound("below", 0.6, 0.5), Bound("beyond", 0.5, 0.8)
    assert [below.verdict(value) for value in (0.6, 0.59, 0.5, 0.49)] == ["ok", "watch", "watch", "bad"]
    assert [beyond.verdict(value) for value in (-0.9, -0.6, 0.0, 0.6, 0.9)] == ["bad", "watch", "ok", "watch", "bad"]
    assert [Bound("above", 0.0, 0.1).verdict(value) for value in (0.0, 0.05, 0.2)] == ["ok", "watch", "bad"]
    assert below.possible(Estimate(0.7, 0.45, 0.8)) == ["ok", "watch", "bad"]
    assert below.possible(Estimate(0.7, 0.65, 0.8)) == ["ok"]
    assert below.possible(Estimate(0.55)) == ["watch"]
    assert beyond.possible(Estimate(0.6, -0.6, 0.9)) == ["ok", "watch", "bad"]  # 0 lies between


def test_a_reward_that_prefers_repetition_is_bad() -> None:
    verdicts = health(metrics(made([0, 1, 0, 2], [1, 0, 1, 0], [0, 0, 1, 1], degenerate=[False, True, False, True])))
    assert {name: found["verdict"] for name, found in verdicts.items() if found["verdict"] != "ok"} == {
        "pair-accuracy": "bad", "repeats": "bad", "repeats-preferred": "bad",
        "group-length-correlation": "bad", "wrong-length-correlation": "bad",
    }  # fmt: skip


def test_the_strongest_disagreements_come_first() -> None:
    responses = made(
        [1, 2, 0, 9, 3, 1, 5, 4, 5, 7],
        [1, 0, 1, 0, 1, 0, 1, 1, 0, 1],
        [0, 0, 1, 1, 2, 2, 3, 3, 3, 4],  # group 2 agrees, group 4 has no wrong response
    )
    found = disagreements(responses, top=5)
    assert [(one.group, one.wrong, one.right, one.gap) for one in found] == [(1, 3, 2, 9), (0, 1, 0, 1), (3, 8, 7, 1)]
    assert found[2].accuracy == pytest.approx(2 / 3)
    assert [one.group for one in disagreements(responses, top=1)] == [1]
    assert disagreements(made([1, 2], [1, 1], [0, 0]), top=5) == []


def test_quarters_by_length() -> None:
    responses = made(range(8), [0, 1] * 4, [0] * 8, lengths=np.arange(8, 0, -1))
    rows = by_length(responses)
    assert [(row["tokens_from"], row["tokens_to"]) for row in rows] == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert rows[0]["reward_per_token"] == pytest.approx((7 + 6) / 3)
    assert (rows[0]["right"]["reward_per_token"], rows[0]["wrong"]["reward_per_token"]) == (7 / 1, 6 / 2)
    assert rows[0]["accuracy"] == 0.5
    equal = by_length(made(range(8), [1] * 8, [0] * 8, lengths=[46] * 7 + [47]))
    assert [(row["tokens_from"], row["responses"]) for row in equal] == [(46, 7), (47, 1)]
    assert equal[0]["wrong"] == {"responses": 0, "accuracy": None, "score": None, "reward_per_token": None}


def test_each_kind_is_summarised_beside_the_others() -> None:
    kinds = by_kind(made([1, 2, 6], [0, 1, 1], [0, 0, 0], truncated=[True, False, False], lengths=[1, 1, 3]))
    assert kinds["truncated"]["these"] == {"responses": 1, "accuracy": 0.0, "score": 1.0, "reward_per_token": 1.0}
    assert kinds["truncated"]["others"] == {"responses": 2, "accuracy": 1.0, "score": 4.0, "reward_per_token": 2.0}
    assert kinds["degenerate"]["these"]["responses"] == 0
