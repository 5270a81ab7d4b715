"""The text that each token of a response stands for, as a reader is to see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.inputs import Shard

BROKEN = "\ufffd"  # what a decoder gives for a part of a character


@dataclass(frozen=True, slots=True)
class Piece:
    """A text and the tokens [first, last) that it stands for: one, or those that make one character together."""

    text: str
    first: int
    last: int


def tokenizer_directory(shard: Shard, given: str | None) -> Path | None:
    """The directory of the tokenizer that a shard was sampled with: as given, or as its provenance names the model.

    None where the provenance names none that is here. Raises InputError where a given one is not.
    """
    if given is not None:
        directory = Path(given)
        if not (directory / "tokenizer.json").exists():
            raise InputError(f"{given}: no tokenizer.json there", "name the model that sampled")
        return directory
    made = [record for record in shard.footer.provenance if record.get("stage") == "generate"]
    name = made[-1]["config"].get("model") if made else None
    if name is None or not (Path(name) / "tokenizer.json").exists():
        return None
    return Path(name)


def load_tokenizer(directory: Path) -> Any:
    """The `tokenizers` object of a directory: milliseconds, where transformers takes seconds."""
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: cannot be read: {error}") from error


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[Piece]:
    """The response as texts, special tokens included. Tokens that are parts of one character come as one piece.

    A token is decoded behind the one before it, since some tokenizers drop the space in front of a first token.
    """
    found: list[Piece] = []
    first = 0
    before: list[int] = []
    for place in range(len(ids)):
        chunk = list(ids[first : place + 1])
        text = _decode(tokenizer, [*before, *chunk])[len(_decode(tokenizer, before)) :]
        if text.endswith(BROKEN) and place + 1 < len(ids) and place - first < 4:
            continue  # a character has four bytes at most
        found.append(Piece(text, first, place + 1))
        before, first = [ids[place]], place + 1
    return found


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters but newlines and tabs become U+FFFD.

    >>> printable("a\\x1b[31mb")
    'a\ufffd[31mb'
    """
    return "".join(letter if letter.isprintable() or letter in "\n\t" else BROKEN for letter in text)
