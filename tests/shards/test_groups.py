from __future__ import annotations

from pathlib import Path

import pytest

from primecli.errors import InputError
from primecli.shards.groups import check_groups, claim_groups
from tests.shards.test_parquet import table


@pytest.mark.parametrize(
    ("index", "size", "message"),
    [
        ([0, 1, 0, 1], [2, 2, 3, 3], "group b is incomplete: it has 2 of 3 samples"),
        ([0, 0, 0, 1], [2, 2, 2, 2], r"group a has the sample_index values 0, 0"),
        ([0, 2, 0, 1], [2, 2, 2, 2], r"group a has the sample_index values 0, 2"),
    ],
)
def test_groups_that_are_not_whole_are_named(index: list[int], size: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_groups(table(sample_index=index, group_size=size), Path("s.parquet"))


def test_groups_may_stand_in_any_order() -> None:
    rows = table(group_id=["a", "b", "a", "b"], sample_index=[1, 0, 0, 1])
    assert check_groups(rows, Path("s.parquet")) == 2


def test_a_group_in_two_shards_is_named() -> None:
    owners: dict[str, Path] = {}
    claim_groups(["a", "b"], Path("1.parquet"), owners)
    claim_groups(["c"], Path("2.parquet"), owners)
    with pytest.raises(InputError, match=r"group b is in two shards, 1\.parquet and 2\.parquet"):
        claim_groups(["d", "b"], Path("2.parquet"), owners)
