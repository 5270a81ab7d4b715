"""Token ids as the pieces of text that they are, for showing; where no tokenizer is at hand, none are made up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.files import file_hash
from primecli.models import tokenizer_fingerprint

TOKENIZER_FILE = "tokenizer.json"
UNKNOWN = "\ufffd"


class Speller:
    """A tokenizer that spells responses token by token. Raises InputError where it cannot be read."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        path = directory / TOKENIZER_FILE
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{path}: cannot be read: {error}", "name another with --tokenizer") from error
        self._special = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        self._texts: dict[int, str | None] = {}

    def _text(self, token: int) -> str | None:
        if token not in self._texts:
            known = self.tokenizer.id_to_token(token) is not None
            self._texts[token] = self.tokenizer.decode([token], skip_special_tokens=False) if known else None
        return self._texts[token]

    def pieces(self, ids: Sequence[int], response: str) -> list[str] | None:
        """The text of each token, special tokens included; together they are the response.

        The part of a character that a token is stands with the token that completes it. None where an id is not in the
        vocabulary, or where the pieces do not come to `response`: then this is not the tokenizer that sampled it.
        """
        texts = [text for token in ids if (text := self._text(token)) is not None]
        if len(texts) < len(ids):
            return None
        if "".join(texts) != self.tokenizer.decode(list(ids), skip_special_tokens=False):
            texts = self._stream(ids)
        plain = "".join(text for token, text in zip(ids, texts, strict=True) if token not in self._special)
        return texts if plain == response or _letters(plain) == _letters(response) else None

    def _stream(self, ids: Sequence[int]) -> list[str]:
        """Pieces by decoding on: for tokens whose text hangs on those before them, or that are parts of characters."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        texts = [stream.step(self.tokenizer, token) for token in ids]
        if texts and texts[-1] is None:
            texts[-1] = UNKNOWN  # the response ends within a character
        return [text or "" for text in texts]


def _letters(text: str) -> str:
    return re.sub(rf"[\s{UNKNOWN}]+", "", text)


class Spellers:
    """Finds the tokenizer of each shard, by `--tokenizer` or by what `generate` wrote into its footer."""

    def __init__(self, given: Path | None = None) -> None:
        self._by_identity: dict[str, Speller] = {}
        self._given = None if given is None else self._load(given)
        self.missing: dict[str, None] = {}  # models whose tokenizer was not found

    def find(self, shard: Path, provenance: Sequence[Mapping[str, Any]]) -> Speller | None:
        """The speller of a shard's responses; None where its tokenizer is not to be found here."""
        if self._given is not None:
            return self._given
        made = [record for record in provenance if record.get("stage") == "generate"]
        if not made:
            self.missing["shards that do not say their model"] = None
            return None
        model = str(made[-1]["config"].get("model"))
        identity = made[-1].get("models", {}).get("tokenizer")
        if identity in self._by_identity:
            return self._by_identity[identity]
        for directory in _candidates(model, shard):
            if (directory / TOKENIZER_FILE).exists() and identity in (None, tokenizer_fingerprint(directory)):
                speller = self._load(directory)
                if identity is not None:
                    self._by_identity[identity] = speller
                return speller
        self.missing[model] = None
        return None

    def _load(self, directory: Path) -> Speller:
        if not (directory / TOKENIZER_FILE).exists():
            raise InputError(f"{directory}: no {TOKENIZER_FILE}", "name the model that sampled with --tokenizer")
        key = f"file {file_hash(directory / TOKENIZER_FILE)}"
        if key not in self._by_identity:
            self._by_identity[key] = Speller(directory)
        return self._by_identity[key]


def _candidates(model: str, shard: Path) -> list[Path]:
    """Where a model's directory may be: as named, as named from a directory above the shard, in the hub's cache."""
    named = Path(model)
    found = [named]
    if not named.is_absolute():
        found += [parent / named for parent in shard.resolve().parents]
        if model.count("/") == 1:
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(model, TOKENIZER_FILE)  # looks at the disk alone
            found += [Path(cached).parent] if isinstance(cached, str) else []
    return [directory for directory in found if directory.is_dir()]
