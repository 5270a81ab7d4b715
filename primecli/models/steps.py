"""Where the steps of a response end, in tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError, UsageError
from primecli.models.token_text import Spellers
from primecli.shards import schema
from primecli.shards.parquet import Shard
from primecli.shards.steps import given_step_ends

if TYPE_CHECKING:
    import pyarrow as pa


def last_of_steps(texts: Sequence[str], separator: str) -> np.ndarray:
    """True on the last text of each step: (T,) bool.

    A step ends with the text in which the separator ends. Several separators in a row end one step, and the last text
    ends the last step. The separator is searched for in the joined texts, so it may span several of them.

    >>> last_of_steps(["a", "b;", "a"], ";")
    array([False,  True,  True])
    """
    if not separator:
        raise UsageError("--step-separator is empty", "give the text that stands between two steps")
    text_ends = np.cumsum([len(text) for text in texts], dtype=np.int64)  # where each text ends
    separator_ends = [match.end() for match in re.finditer(f"(?:{re.escape(separator)})+", "".join(texts))]
    ends = np.zeros(len(texts), dtype=bool)
    ends[np.searchsorted(text_ends, separator_ends)] = True
    ends[-1:] = True
    return ends


class StepFinder:
    """Finds the steps of responses: those that the shards give in `step_ends`, else by the separator.

    separator: the text between two steps. spellers: find the tokenizer of a shard without `step_ends`. purpose: what
    needs the steps, to begin a message with, such as "--select min".
    """

    def __init__(self, separator: str, spellers: Spellers, purpose: str) -> None:
        self.separator = separator
        self.spellers = spellers
        self.purpose = purpose

    def ends(self, table: pa.Table, shard: Shard, *, first_row: int = 0) -> list[np.ndarray]:
        """The index of the last token of each step, for each row. table: has `response_ids` and, if the shard has it,
        `step_ends`.

        Raises InputError where a row has no `step_ends` and the tokenizer is not found.
        """
        given = given_step_ends(table, shard.path, first_row=first_row)
        if all(ends is not None for ends in given):
            return [ends for ends in given if ends is not None]
        speller = self.spellers.find(shard.path, shard.footer.provenance)
        if speller is None:
            raise InputError(
                f"{shard.path}: {self.purpose} needs the tokenizer that the rollouts were sampled with, to find steps",
                "name it with --tokenizer",
            )
        rows = table[schema.RESPONSE_IDS].to_pylist()
        return [
            np.flatnonzero(last_of_steps(speller.known_texts(ids), self.separator)) if ends is None else ends
            for ids, ends in zip(rows, given, strict=True)
        ]


def step_sums(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(S,): the sum of the values of each step's tokens. values: (T,), one a token; ends: (S,), as above.

    >>> step_sums(np.array([1.0, 2.0, 4.0]), np.array([0, 2])).tolist()
    [1.0, 6.0]
    """
    return np.asarray(np.add.reduceat(values, [0, *(ends[:-1] + 1)]))
