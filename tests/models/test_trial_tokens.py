"""The tokens of trials are from all over the vocabulary."""

from __future__ import annotations

from itertools import pairwise

import pytest

from primecli.models.trial_tokens import spread_ids


@pytest.mark.parametrize("vocabulary", [40, 257, 49152, 151936])
def test_they_are_from_all_over_the_vocabulary(vocabulary: int) -> None:
    ids = spread_ids(vocabulary, 16)
    assert len(set(ids)) == len(ids) == 16
    assert 0 < min(ids) < max(ids) < vocabulary
    ends = [0, *sorted(ids), vocabulary]
    assert max(after - before for before, after in pairwise(ends)) < vocabulary / 7  # 17 gaps
    assert sum(number < 17 for number in ids) < max(2, 17 * 16 / vocabulary + 2)  # few of the special tokens


def test_more_of_them_begin_with_fewer() -> None:
    assert spread_ids(50_000, 30)[:16] == spread_ids(50_000, 16)
