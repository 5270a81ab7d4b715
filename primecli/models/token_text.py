"""The text that each token of a response stands for, and the tokenizer that says so."""

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
TOKENISING = ("generate", "import")  # the stages whose record names the tokenizer of the rollouts


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
    """A tokenizer that spells out responses token by token. It loads in milliseconds, by `tokenizers` alone.

    Raises InputError where the directory has no tokenizer.json that can be read.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        self.path = directory / TOKENIZER_FILE
        if not self.path.is_file():
            raise InputError(f"{directory}: no {TOKENIZER_FILE} in it", "name the model that sampled with --tokenizer")
        try:
            self.tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{self.path}: cannot be read: {error}", "name another with --tokenizer") from error
        self._special = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        self._known: dict[int, bool] = {}
        self._inside: dict[int, str] = {}  # texts of tokens after another, if they are whole by themselves

    def _knows(self, token: int) -> bool:
        if token not in self._known:
            self._known[token] = self.tokenizer.id_to_token(token) is not None
        return self._known[token]

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, (T,). Joined, they are the decoded response, special tokens included.

        The text of a character that takes several tokens belongs to the token that completes it, and the tokens before
        it have none. Bytes that form no character are U+FFFD, as in the decoder's output. An id that is not in the
        vocabulary becomes its number, such as `<999>`; only these texts are not in the decoder's output.
        """
        texts = iter(self._spell([token for token in ids if self._knows(token)]))
        return [next(texts) if self._knows(token) else id_text(token) for token in ids]

    def fingerprint(self) -> str:
        """Identity of the tokenizer: `identity.tokenizer_fingerprint` in a model directory, else the file's hash."""
        return _identity(self.path.parent) or file_hash(self.path)

    def known_texts(self, ids: Sequence[int]) -> list[str]:
        """The same as `texts`, but raises InputError where an id is not in the vocabulary."""
        for token in ids:
            if not self._knows(token):
                raise InputError(
                    f"{self.path}: has no token {token}", "the rollouts were sampled with another tokenizer"
                )
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
        """The texts as pieces to display: tokens without a text form one piece with the next token that has one."""
        pieces: list[Piece] = []
        first = 0
        for index, text in enumerate(self.texts(ids)):
            if text or index + 1 == len(ids):
                pieces.append(Piece(text, first, index + 1))
                first = index + 1
        return pieces

    def texts_of(self, ids: Sequence[int], response: str) -> list[str] | None:
        """The same as `texts`; None where they do not add up to `response`, which another tokenizer then decoded.

        White space and U+FFFD are not compared, since decoders clean them up in several ways. Neither are ids outside
        the vocabulary, which a model can sample if its embedding is larger.
        """
        texts = self.texts(ids)
        spelled = [token not in self._special and self._knows(token) for token in ids]
        plain = "".join(text for text, counts in zip(texts, spelled, strict=True) if counts)
        return texts if plain == response or _letters(plain) == _letters(response) else None


def _common(text: str, whole: str, start: int) -> int:
    """How many of the first characters of `text` are those of `whole` from `start` on."""
    if whole.startswith(text, start):
        return len(text)
    count = 0
    while count < len(text) and whole.startswith(text[count], start + count):
        count += 1
    return count


def _letters(text: str) -> str:
    return re.sub(rf"[\s{BROKEN}]+", "", text)


def id_text(token: int) -> str:
    """The text that is shown for a token without one, such as `<999>`."""
    return f"<{token}>"


def number_pieces(ids: Sequence[int]) -> list[Piece]:
    """Pieces that show each token's number, for when there is no tokenizer."""
    return [Piece(id_text(token), index, index + 1) for index, token in enumerate(ids)]


class Spellers:
    """Finds the tokenizer of each shard: the one named with --tokenizer, else the one that `generate` recorded.

    given: a directory, or the id of a model in the hub's cache. Raises InputError where that has no tokenizer.
    """

    def __init__(self, given: str | None = None) -> None:
        self._by_identity: dict[str, Speller] = {}
        self._given: Speller | None = None
        self.missing: dict[str, None] = {}  # models whose tokenizer was not found
        if given is not None:
            self._given = self._load(next(_candidates(given, []), Path(given)))

    def find(self, shard: Path, provenance: Sequence[Mapping[str, Any]]) -> Speller | None:
        """The speller for a shard's responses; None where its tokenizer is not found.

        If the provenance names the model by a relative path, it is searched for from the current directory and from
        each directory above the shard. It is used only if its files still have the hash in the provenance. Once found,
        it serves every shard with that hash.
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
    """The model that `generate` sampled with, or `import` took the tokenizer of: as it was named, and the tokenizer's
    hash; None where not recorded."""
    made = next((record for record in reversed(provenance) if record.get("stage") in TOKENISING), None)
    name = ((made or {}).get("config") or {}).get("model")
    identity = ((made or {}).get("models") or {}).get("tokenizer")
    return None if name is None else str(name), identity


def _candidates(name: str, above: Sequence[Path]) -> Iterator[Path]:
    """Directories with a tokenizer that a name may refer to; the hub's cache comes last, and the hub is not asked."""
    for base in (Path(), *above):
        if (base / name / TOKENIZER_FILE).is_file():
            yield base / name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            file = try_to_load_from_cache(name, TOKENIZER_FILE)
        except HFValidationError:  # such as ../..
            return
        if isinstance(file, str):
            yield Path(file).parent


def _identity(directory: Path) -> str | None:
    try:
        return tokenizer_fingerprint(directory)
    except OSError:  # a directory with nothing but a tokenizer has no config.json
        return None
