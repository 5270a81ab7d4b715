"""Where the steps of a response end, in tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from primecli.errors import InputError, UsageError


def token_texts(directory: Path, ids: np.ndarray) -> dict[int, str]:
    """The text of each distinct token id, special tokens included, by the tokenizer of a model's directory.

    A token that is a part of a character has U+FFFD for it. Raises InputError where there is no tokenizer.json, or
    where an id is not one of its tokens.
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{directory}: no tokenizer.json", "name the model that sampled with --tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: cannot be read: {error}") from error
    texts = {}
    for token in np.unique(ids).tolist():
        if tokenizer.id_to_token(token) is None:
            raise InputError(f"{path}: has no token {token}", "the rollouts are of another tokenizer")
        texts[token] = tokenizer.decode([token], skip_special_tokens=False)
    return texts


def step_ends(responses: Sequence[np.ndarray], texts: dict[int, str], separator: str) -> np.ndarray:
    """True on the last token of each step of each response: (N,) bool, the rows one after another.

    A step ends with the token in which the separator ends; separators in a row end one step, and a response's last
    token ends its last step. The separator is looked for in the tokens' own texts, joined.

    >>> step_ends([np.array([1, 2, 1])], {1: "a", 2: "b;"}, ";")
    array([False,  True,  True])
    """
    if not separator:
        raise UsageError("--step-separator is empty", "give the text that stands between two steps")
    pattern = re.compile(f"(?:{re.escape(separator)})+")
    ends = []
    for ids in responses:
        pieces = [texts[token] for token in ids.tolist()]
        closes = np.cumsum([len(piece) for piece in pieces])  # where each token's text ends
        found = [match.end() for match in pattern.finditer("".join(pieces))]
        row = np.zeros(len(ids), dtype=bool)
        row[np.searchsorted(closes, found)] = True
        row[-1:] = True
        ends.append(row)
    return np.concatenate(ends) if ends else np.zeros(0, dtype=bool)
