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

BROKEN = "\ufffd"  # what a decoder gives for bytes that are not a whole character
# Tokens. A character has at most 4 bytes, hence few tokens; a longer run that completes none is broken text, and its
# tokens are not held together.
LONGEST_CHARACTER = 16
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a response's text: that of one token, or of the tokens that make up one character.

    text: the text.
    first: index of its first token in the response, from 0.
    last: index after its last token.
    """

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
        """The text of each token, (T,), all of them in the vocabulary: joined they are exactly the decoded response.

        Decoding each token by itself would not do: a decoder may drop the space in front of the first token, and a
        character may take several tokens. So the tokens since the last whole character are decoded together, after the
        tokens of that character (the context), whose own text is then cut off. No decoder looks further back than that.

            tokens    ... | context         | ids[first : index + 1] | ...
            text      ... | decode(context) | pending_text           | ...
                                            ^ start
        """
        whole = self._decode(ids)
        texts: list[str] = []
        context: list[int] = []  # the tokens of the last whole character
        first = 0  # the first token after the context
        start = 0  # where the context's text ends in `whole`
        settled = 0  # how many characters of `whole` have been given to the tokens so far
        for index, token in enumerate(ids):
            alone = bool(context) and first == index  # the token starts a character, and not the response
            pending_text = self._inside.get(token) if alone else None
            if pending_text is None or not whole.startswith(pending_text, start):
                pending_text = self._decode([*context, *ids[first : index + 1]])[len(self._decode(context)) :]
                if alone and pending_text and BROKEN not in pending_text and whole.startswith(pending_text, start):
                    self._inside[token] = pending_text
            # While a character is unfinished, the decoder gives U+FFFD where `whole` has the character: only what
            # agrees with `whole` is settled. `max`, because one more token can make less of it agree.
            end = max(settled, start + _common(pending_text, whole, start))
            texts.append(whole[settled:end])
            settled = end
            complete = whole.startswith(pending_text, start)
            # a long run of broken bytes is cut here: decoding it again for each of its tokens would take quadratic time
            if complete and (not pending_text.endswith(BROKEN) or index - first >= LONGEST_CHARACTER):
                context, first, start = ids[first : index + 1], index + 1, end
        if texts:
            texts[-1] += whole[settled:]  # what no token settled
        return texts

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
        model, identity = sampling_model(provenance)
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


def sampling_model(provenance: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
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
