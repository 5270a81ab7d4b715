"""The inputs of outputs that each depend on a whole batch: the first of them lists them all, the others refer to it.

If every one of a thousand shards listed a thousand inputs, their footers would be larger than their rows. So the others
name only the input that they are made from, and say how many there are, the hash of their contents, and which shard of
the same directory lists them. All have the same fingerprint: that of the recipe with all inputs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.files import Json, fingerprint
from primecli.shards.parquet import Shard, read_footer
from primecli.shards.provenance import StoredInput


def reference(shards: Sequence[Shard]) -> dict[str, Json]:
    """What the footers of all outputs but the first say of their inputs: a `StoredBatch`. shards: these, in order."""
    contents = [shard.footer.content for shard in shards]
    return {"shards": len(shards), "content": fingerprint(contents), "listed_in": shards[0].name}


def refers_to(batch: Mapping[str, Any], contents: Sequence[str]) -> bool:
    """Whether these inputs, given by the hashes of their contents, are the ones that a footer refers to."""
    return bool(batch["shards"] == len(contents) and batch["content"] == fingerprint(list(contents)))


class Listings:
    """The inputs that footers refer to, each list read and checked once."""

    def __init__(self) -> None:
        self._read: dict[tuple[Path | None, object, str], list[StoredInput] | None] = {}

    def inputs(self, path: Path, record: Mapping[str, Any]) -> list[StoredInput] | None:
        """All inputs of the command that a record is about.

        path: of the shard in whose footer the record is. None where the shard that lists them is gone, or lists others.
        """
        batch = record.get("batch")
        if batch is None:
            return list(record.get("inputs") or ())
        source = listing(path, batch)
        key = (source, record.get("fingerprint"), str(batch["content"]))
        if key not in self._read:
            self._read[key] = None if source is None else _listed(source, record.get("fingerprint"), batch)
        return self._read[key]


def listing(path: Path, batch: Mapping[str, Any]) -> Path | None:
    """The shard that should list the inputs of the one at `path`; None where its footer names no file."""
    name = str(batch["listed_in"])
    return path.with_name(name) if name and name == os.path.basename(name) and name not in (".", "..") else None


def _listed(source: Path, recipe: object, batch: Mapping[str, Any]) -> list[StoredInput] | None:
    """The inputs that a shard lists for outputs with this fingerprint of their recipe."""
    with contextlib.suppress(InputError):
        for record in read_footer(source).provenance:
            inputs = list(record.get("inputs") or ())
            contents = [str(entry.get("content")) for entry in inputs]
            if record.get("fingerprint") == recipe and refers_to(batch, contents):
                return inputs
    return None
