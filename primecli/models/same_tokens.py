"""Whether a model reads the token ids of a shard as the text that was sampled: its tokenizer must be the sampler's.

A PRM with another tokenizer would score another text without any error. Chat templates and stop tokens may differ, as
they do between a base model and what was trained from it; what matters is the text of each id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.files import file_hash
from primecli.models.identity import tokenizer_fingerprint
from primecli.models.token_text import TOKENISING, TOKENIZER_FILE, Speller
from primecli.shards import schema
from primecli.shards.parquet import Shard
from primecli.shards.streaming import read_row

TOKEN_IDENTITY = "token_identity"
"""The key of `token_identity` in the record that `generate` or `import` leaves in a shard."""

OTHER_FORMATS = ("*.model", "vocab.txt", "vocab.json", "*.tiktoken")


def token_identity(directory: Path) -> str | None:
    """Hash of the text of every token id; None for a directory without a tokenizer."""
    path = directory / TOKENIZER_FILE
    if path.is_file():
        vocabulary = Speller(directory).tokenizer.get_vocab(with_added_tokens=True)
        digest = hashlib.sha256()
        for text, number in sorted(vocabulary.items(), key=lambda item: item[1]):
            digest.update(f"{number}\0{text}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()[:32]
    files = sorted({path for pattern in OTHER_FORMATS for path in directory.glob(pattern)})
    return file_hash(files[0]) if files else None


class TokenCheck:
    """Compares the tokenizers of models with that of the shards that they are to read.

    directories: the models, by role, such as {"prm": Path("ckpt/prm/1")}.
    """

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self.directories = dict(directories)
        self._identities: dict[Path, str | None] = {}
        self._checked: set[tuple[Path, str | None]] = set()  # models, and what the shards record

    def check(self, shard: Shard) -> None:
        """Raises InputError where a model has another tokenizer than the one that sampled the shard.

        Shards that `generate` wrote before it recorded the identity are compared by their first response: it has to be
        what the model's tokenizer makes of its ids. Nothing is known of shards that another tool wrote.
        """
        records: list[Mapping[str, Any]] = [
            record for record in shard.footer.provenance if record.get("stage") in TOKENISING
        ]
        made = records[-1] if records else {}
        for role, directory in self.directories.items():
            key = directory, made.get(TOKEN_IDENTITY) or made.get("models", {}).get("tokenizer")
            if key not in self._checked:
                self._checked.add(key)
                if made and not self._same(shard, directory, made):
                    raise InputError(
                        f"{shard.path}: was made with another tokenizer than that of the {role} {directory}",
                        "its ids would be read as another text: use models with the same tokenizer",
                    )

    def _same(self, shard: Shard, directory: Path, made: Mapping[str, Any]) -> bool:
        if directory not in self._identities:
            self._identities[directory] = token_identity(directory)
        ours = self._identities[directory]
        if ours is None:
            return True  # nothing to compare: a model may come without its tokenizer
        if made.get(TOKEN_IDENTITY) is not None:
            return bool(made[TOKEN_IDENTITY] == ours)
        if made.get("models", {}).get("tokenizer") == tokenizer_fingerprint(directory):
            return True
        return _spells(shard, directory)


def _spells(shard: Shard, directory: Path) -> bool:
    """Whether the tokenizer makes the first response's text of its ids."""
    needed = (schema.RESPONSE_IDS, schema.RESPONSE)
    if not (directory / TOKENIZER_FILE).is_file() or not set(needed) <= set(shard.footer.columns):
        return True
    row = read_row(shard.path, 0, needed)
    return Speller(directory).texts_of(row[schema.RESPONSE_IDS], row[schema.RESPONSE]) is not None
