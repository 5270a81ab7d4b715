"""The column `step_ends`: where the steps of a response end, if somebody has said so."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from primecli.errors import InputError
from primecli.shards import schema
from primecli.shards.columns import flat_column

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def problem_of_ends(ends: Sequence[int | None] | None, tokens: int) -> str | None:
    """What is wrong with the step ends of a response of so many tokens; None if nothing is, or there are none.

    >>> problem_of_ends([1, 4], 5), problem_of_ends([4, 1], 5), problem_of_ends([1, 4], 6)
    (None, 'is not in ascending order', 'ends at token 4, and the response at token 5')
    """
    if ends is None:
        return None
    known = [end for end in ends if end is not None]
    if not known or len(known) < len(ends):
        return "holds a null" if ends else "is empty"
    if known[0] < 0 or any(second <= first for first, second in pairwise(known)):
        return "is not in ascending order"
    return None if known[-1] == tokens - 1 else f"ends at token {known[-1]}, and the response at token {tokens - 1}"


def given_step_ends(table: pa.Table, path: object, *, first_row: int = 0) -> list[np.ndarray | None]:
    """The index of the last token of each step, for each row; None where the row, or the whole shard, has none.

    table: has `response_ids`. first_row: the table's first row in the shard, for the message. Raises InputError where
    they do not fit the response.
    """
    import numpy as np

    if schema.STEP_ENDS not in table.column_names:
        return [None] * table.num_rows
    _, lengths = flat_column(table, schema.RESPONSE_IDS)
    found: list[np.ndarray | None] = []
    for row, ends in enumerate(table[schema.STEP_ENDS].to_pylist()):
        problem = None if ends is None else "holds a null" if None in ends else problem_of_ends(ends, int(lengths[row]))
        if problem is not None:
            raise InputError(
                f"{path}: {schema.STEP_ENDS} {problem} at row {first_row + row}", "see `primecli validate`"
            )
        found.append(None if ends is None else np.array(ends, dtype=np.int64))
    return found
