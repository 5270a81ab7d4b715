from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.core import pairs
from primecli.core.pairs import count_pairs

rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1)


@settings(deadline=None, max_examples=60)
@given(rows)
def test_counts_are_those_of_counting_one_by_one(rows: list[tuple[int, int, float]]) -> None:
    group, scores, outcomes = (np.array(column) for column in zip(*rows, strict=True))
    counts = count_pairs(scores.astype(float), outcomes, group)
    for index, name in enumerate(np.unique(group)):
        members = [(s, y) for g, s, y in rows if g == name]
        ranked = [(s > t) + 0.5 * (s == t) for s, y in members for t, z in members if y > z]
        assert (counts.correct[index], counts.pairs[index]) == (sum(ranked), len(ranked))


def test_pairs_are_counted_within_groups_only() -> None:
    scores, outcomes = np.array([1.0, 3.0, 2.0, 2.0]), np.array([1.0, 0.0, 1.0, 0.0])
    assert count_pairs(scores, outcomes, np.array([0, 1, 1, 0])).accuracy() == 0
    together = np.zeros(4, dtype=int)
    assert count_pairs(scores, outcomes, together).accuracy() == 0.5 / 4  # 2 and 2 tie
    assert count_pairs(scores, 1 - outcomes, together).accuracy() == 3.5 / 4
    assert count_pairs(scores, np.ones(4), together).accuracy() is None


def test_large_groups_are_compared_in_parts() -> None:
    size, groups = 700, 6
    assert size * size * groups > pairs.COMPARED_AT_ONCE
    generator = np.random.default_rng(0)
    outcomes = generator.integers(0, 2, groups * size).astype(float)
    scores = outcomes + generator.normal(size=groups * size)
    counts = count_pairs(scores, outcomes, np.repeat(np.arange(groups), size))
    for group in range(groups):
        s, y = (values.reshape(groups, size)[group] for values in (scores, outcomes))
        assert counts.pairs[group] == (y == 1).sum() * (y == 0).sum()
        assert counts.correct[group] == sum((s[y == 0] < better).sum() for better in s[y == 1])


def test_scores_that_are_not_finite_give_no_number() -> None:
    accuracy = count_pairs(np.array([np.inf, np.inf]), np.array([1.0, 0.0]), np.array([0, 0])).accuracy()
    assert accuracy is not None
    assert np.isnan(accuracy)
