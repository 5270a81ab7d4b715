"""Where the steps of a response end, in tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from primecli.errors import UsageError


def step_ends(
    responses: Iterable[Sequence[int]], spell: Callable[[Sequence[int]], Sequence[str]], separator: str
) -> np.ndarray:
    """True on the last token of each step of each response: (N,) bool, row after row.

    spell: returns the text of each token of a response. separator: see `last_of_steps`.
    """
    ends = [last_of_steps(spell(ids), separator) for ids in responses]
    return np.concatenate(ends) if ends else np.zeros(0, dtype=bool)


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
