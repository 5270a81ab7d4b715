"""What is wrong with a shard's footer: the hash of its rows, the provenance chain, the recipe and its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from primecli.files import fingerprint
from primecli.shards import parquet
from primecli.shards.batches import Listings, listing

RECORD_KEYS = ("stage", "command", "config", "fingerprint", "inputs")  # that each provenance record has


def problems_of_footer(path: Path, footer: parquet.Footer, listings: Listings) -> Iterator[str]:
    """One line for each problem. footer: of the shard at `path`. listings: of the inputs that footers refer to."""
    if footer.fingerprint is None:
        yield "has no primecli footer: another tool wrote it, and nothing says how"
        return
    content = parquet.content_of(path)
    if content != footer.content:
        yield f"its rows were changed after they were written: their hash is {content}, not {footer.content}"
    if not footer.provenance:
        yield "its provenance is empty"
        return
    for index, record in enumerate(footer.provenance):
        missing = [key for key in RECORD_KEYS if key not in record]
        if missing:
            yield f"link {index + 1} of its provenance lacks {', '.join(missing)}"
    last = footer.provenance[-1]
    if last.get("fingerprint") != footer.fingerprint:
        yield "its last provenance record has another fingerprint than its footer"
    if footer.recipe:
        yield from _problems_of_recipe(path, footer, last, listings)


def _problems_of_recipe(
    path: Path, footer: parquet.Footer, last: Mapping[str, Any], listings: Listings
) -> Iterator[str]:
    """Whether it is the one that was hashed, and has the inputs that the last record of the provenance names."""
    recipe = dict(footer.recipe or {})
    inputs = [entry.get("content") for entry in last.get("inputs") or ()]
    batch = recipe.pop("batch", None)
    if inputs and (list(recipe.get("inputs") or ()) != inputs or batch != last.get("batch")):
        yield "its last provenance record names other inputs than its recipe"
    if batch:
        listed = listings.inputs(path, {**last, "batch": batch})
        if listed is None:
            source = listing(path, batch)
            if source is None or source.exists():
                yield f"its inputs should be listed in {batch['listed_in']}, and are not"
            return  # copied without the shard that lists them, it cannot be compared with its fingerprint
        recipe["inputs"] = [str(entry.get("content")) for entry in listed]
        if not set(inputs) <= set(recipe["inputs"]):
            yield f"the input that it names is not among those that {batch['listed_in']} lists"
    if fingerprint(recipe) != footer.fingerprint:
        yield "the fingerprint in its footer is not that of its recipe"
