"""The text that each token of a response stands for, as a reader is to see it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.inputs import Shard

BROKEN = "\ufffd"  # what a decoder gives for a part of a character
CHARACTER_BYTES = 4
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """A text and the tokens [first, last) that it stands for: one, or those that make one character together."""

    text: str
    first: int
    last: int


def find_tokenizer(shard: Shard, given: str | None) -> Path | None:
    """The directory of the tokenizer that a shard was sampled with: as given, or as its provenance names the model.

    A model that the provenance names by a relative path is looked for from here and from each directory above the
    shard. It counts only while its files are those that the provenance has the hash of. None where there is none.
    Raises InputError where a given one is not there.
    """
    if given is not None:
        directory = next(_candidates(given, []), None)
        if directory is None:
            raise InputError(f"{given}: no {TOKENIZER_FILE} there", "name the model that sampled")
        return directory
    made = next((record for record in reversed(shard.footer.provenance) if record.get("stage") == "generate"), None)
    name = (made or {}).get("config", {}).get("model")
    if made is None or name is None:
        return None
    expected = (made.get("models") or {}).get("tokenizer")
    for directory in _candidates(str(name), list(shard.path.resolve().parents)):
        if expected is None or _fingerprint(directory) == expected:
            return directory
    return None


def _candidates(name: str, above: Sequence[Path]) -> Iterator[Path]:
    """Directories with a tokenizer that a name may mean; last the hub's cache, without asking the hub."""
    for base in (Path(), *above):
        if (base / name / TOKENIZER_FILE).is_file():
            yield base / name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, TOKENIZER_FILE)
        if isinstance(found, str):
            yield Path(found).parent


def _fingerprint(directory: Path) -> str | None:
    from primecli.models import tokenizer_fingerprint

    try:
        return tokenizer_fingerprint(directory)
    except OSError:  # a directory of a tokenizer alone has no config.json
        return None


def load_tokenizer(directory: Path) -> Any:
    """The `tokenizers` object of a directory: milliseconds, where transformers takes seconds."""
    from tokenizers import Tokenizer

    path = directory / TOKENIZER_FILE
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: cannot be read: {error}") from error


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[Piece]:
    """The response as texts, special tokens included. Tokens that are parts of one character come as one piece.

    A token is decoded behind the one before it, since some tokenizers drop the space in front of a first token. An id
    that the tokenizer does not have is shown as a number.
    """
    found: list[Piece] = []
    first = 0
    before: list[int] = []
    for place, token in enumerate(ids):
        if tokenizer.id_to_token(token) is None:
            if first < place:
                found.append(Piece(BROKEN, first, place))
            found.append(number_piece(token, place))
            before, first = [], place + 1
            continue
        chunk = list(ids[first : place + 1])
        text = _decode(tokenizer, [*before, *chunk])[len(_decode(tokenizer, before)) :]
        if text.endswith(BROKEN) and place + 1 < len(ids) and len(chunk) < CHARACTER_BYTES:
            continue
        found.append(Piece(text, first, place + 1))
        before, first = [token], place + 1
    return found


def number_piece(token: int, place: int) -> Piece:
    """A token that cannot be spelled, as its number."""
    return Piece(f"<{token}>", place, place + 1)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""


def printable(text: str) -> str:
    """Text that cannot steer a terminal, nor change the order of what stands there, a character for a character.

    Control characters become their pictures, other spaces a space, what has no picture U+FFFD; newlines stay.

    >>> printable("a\\x1b[31mb\\u202ec")
    'a␛[31mb\ufffdc'
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else _visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter in "\t\u00a0" or (letter.isspace() and letter > "\u1000"):
        return " "
    if letter < " ":
        return chr(0x2400 + ord(letter))
    return "\u2421" if letter == "\x7f" else BROKEN


def safe_json(text: str) -> str:
    """JSON text with what `printable` replaces as escapes: as valid as before, and nothing that steers a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))
