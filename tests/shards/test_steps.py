from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pytest

from primecli.errors import InputError
from primecli.shards import schema
from primecli.shards.steps import given_step_ends


def table(ends: list[Any]) -> pa.Table:
    columns = {schema.RESPONSE_IDS: [[1, 2, 3]] * len(ends), schema.STEP_ENDS: ends}
    return pa.table(columns, schema=schema.arrow_schema(columns))


def test_rows_without_steps_are_none() -> None:
    first, second = given_step_ends(table([[0, 2], None]), "x")
    assert (first is not None and first.tolist(), second) == ([0, 2], None)
    assert given_step_ends(table([None]).select([schema.RESPONSE_IDS]), "x") == [None]


@pytest.mark.parametrize(
    ("ends", "problem"),
    [
        ([], "step_ends is empty at row 8"),
        ([0, None, 2], "holds a null"),
        ([1, 1, 2], "is not in ascending order"),
        ([-1, 2], "is not in ascending order"),
        ([0, 1], "ends at token 1, and the response at token 2"),
        ([0, 3], "ends at token 3, and the response at token 2"),
    ],
)
def test_steps_that_do_not_fit_the_response_are_refused(ends: list[Any], problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)):
        given_step_ends(table([[2], ends]), "x", first_row=7)
