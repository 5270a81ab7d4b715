"""The text that each token of a response stands for, and which tokenizer says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.files import file_hash
from primecli.models.identity import tokenizer_fingerprint

BROKEN = "\ufffd"  # what a decoder gives for a part of a character
LONGEST_CHARACTER = 16  # tokens; a longer run of bytes that make none is no character, and is not held together
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """A text and the tokens [first, last) that it stands for: one, or those that make one character together."""

    text: str
    first: int
    last: int


class Speller:
    """A tokenizer that spells responses token by token: the `tokenizers` object, in milliseconds.

    Raises InputError where the directory has none that can be read.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        self.path = directory / TOKENIZER_FILE
        if not self.path.is_file():
            raise InputError(f"{directory}: no {TOKENIZER_FILE} there", "name the model that sampled with --tokenizer")
        try:
            self.tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{self.path}: cannot be read: {error}", "name another with --tokenizer") from error
        self._special = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        self._known: dict[int, bool] = {}
        self._inside: dict[int, str] = {}  # texts of tokens that stand behind another and are whole by themselves

    def _knows(self, token: int) -> bool:
        if token not in self._known:
            self._known[token] = self.tokenizer.id_to_token(token) is not None
        return self._known[token]

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, (T,); joined they are the decoded response, special tokens included.

        A character of several tokens stands with the token that completes it, and those before it have no text; bytes
        that make no character are U+FFFD, as the decoder has it. An id that is not in the vocabulary is its number,
        `<999>`, and the only text that decoding does not give.
        """
        found = iter(self._spell([token for token in ids if self._knows(token)]))
        return [next(found) if self._knows(token) else number(token) for token in ids]

    def fingerprint(self) -> str:
        """Identity of the tokenizer: of the model's, where it is in a model's directory, else of the file."""
        return _identity(self.path.parent) or file_hash(self.path)

    def known_texts(self, ids: Sequence[int]) -> list[str]:
        """As `texts`. Raises InputError where an id is not in the vocabulary."""
        for token in ids:
            if not self._knows(token):
                raise InputError(f"{self.path}: has no token {token}", "the rollouts are of another tokenizer")
        return self.texts(ids)

    def _spell(self, ids: list[int]) -> list[str]:
        """Texts of known tokens: of each token, the part of the decoded response that it settles.

        What is settled by a token is found by decoding the tokens since the last whole character behind those that make
        that character: a decoder may drop a space in front of a first token, and no more than this hangs together.
        """
        whole = self._decode(ids)
        found: list[str] = []
        before: list[int] = []  # the tokens of the last whole character, up to `first`; their text ends at `start`
        first = start = settled = 0
        for place, token in enumerate(ids):
            text = self._inside.get(token) if before and first == place else None
            if text is None or not whole.startswith(text, start):
                text = self._decode([*before, *ids[first : place + 1]])[len(self._decode(before)) :]
                if before and first == place and text and BROKEN not in text and whole.startswith(text, start):
                    self._inside[token] = text
            end = max(settled, start + _common(text, whole, start))
            found.append(whole[settled:end])
            settled = end
            if whole.startswith(text, start) and (not text.endswith(BROKEN) or place - first >= LONGEST_CHARACTER):
                before, first, start = ids[first : place + 1], place + 1, end
        if found:
            found[-1] += whole[settled:]
        return found

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""

    def pieces(self, ids: Sequence[int]) -> list[Piece]:
        """The texts as pieces for showing: tokens without a text are of one piece with the token behind them."""
        found: list[Piece] = []
        first = 0
        for place, text in enumerate(self.texts(ids)):
            if text or place + 1 == len(ids):
                found.append(Piece(text, first, place + 1))
                first = place + 1
        return found

    def texts_of(self, ids: Sequence[int], response: str) -> list[str] | None:
        """As `texts`; None where they do not come to `response`: then this is not the tokenizer that sampled it.

        Spaces and U+FFFD are not compared, since decoders tidy them in several ways; nor are ids outside the
        vocabulary, which a model whose embedding is larger can sample.
        """
        texts = self.texts(ids)
        spelled = [token not in self._special and self._knows(token) for token in ids]
        plain = "".join(text for text, counts in zip(texts, spelled, strict=True) if counts)
        return texts if plain == response or _letters(plain) == _letters(response) else None


def _common(text: str, whole: str, start: int) -> int:
    """How many first characters of `text` stand in `whole` from `start` on."""
    if whole.startswith(text, start):
        return len(text)
    count = 0
    while count < len(text) and whole.startswith(text[count], start + count):
        count += 1
    return count


def _letters(text: str) -> str:
    return re.sub(rf"[\s{BROKEN}]+", "", text)


def number(token: int) -> str:
    """The text of a token that cannot be spelled."""
    return f"<{token}>"


def number_pieces(ids: Sequence[int]) -> list[Piece]:
    """Tokens as their numbers, where there is no tokenizer."""
    return [Piece(number(token), place, place + 1) for place, token in enumerate(ids)]


class Spellers:
    """Finds the tokenizer of each shard: as given by --tokenizer, or by what `generate` wrote into its footer.

    given: a directory or a hub id in the hub's cache. Raises InputError where a given one is not there.
    """

    def __init__(self, given: str | None = None) -> None:
        self._by_identity: dict[str, Speller] = {}
        self._given: Speller | None = None
        self.missing: dict[str, None] = {}  # models whose tokenizer was not found
        if given is not None:
            self._given = self._load(next(_candidates(given, []), Path(given)))

    def find(self, shard: Path, provenance: Sequence[Mapping[str, Any]]) -> Speller | None:
        """The speller of a shard's responses; None where its tokenizer is not to be found here.

        A model that the provenance names by a relative path is looked for from here and from each directory above the
        shard. It counts only while its files are those that the provenance has the hash of; one that was found serves
        wherever that hash is named.
        """
        if self._given is not None:
            return self._given
        model, identity = sampler(provenance)
        if model is None:
            self.missing["shards that do not say their model"] = None
            return None
        if identity in self._by_identity:
            return self._by_identity[identity]
        for directory in _candidates(model, list(shard.resolve().parents)):
            if identity is None or _identity(directory) == identity:
                speller = self._load(directory)
                if identity is not None:
                    self._by_identity[identity] = speller
                return speller
        self.missing[model] = None
        return None

    def _load(self, directory: Path) -> Speller:
        path = directory / TOKENIZER_FILE
        key = f"file {file_hash(path)}" if path.is_file() else ""
        if key not in self._by_identity:
            self._by_identity[key] = Speller(directory)
        return self._by_identity[key]


def sampler(provenance: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """The model that `generate` sampled with, as it was named, and the hash of its tokenizer; None where not said."""
    made = next((record for record in reversed(provenance) if record.get("stage") == "generate"), None)
    name = ((made or {}).get("config") or {}).get("model")
    identity = ((made or {}).get("models") or {}).get("tokenizer")
    return None if name is None else str(name), identity


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


def _identity(directory: Path) -> str | None:
    try:
        return tokenizer_fingerprint(directory)
    except OSError:  # a directory of a tokenizer alone has no config.json
        return None
