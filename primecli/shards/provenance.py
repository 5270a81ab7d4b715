"""What the JSON in shards and checkpoints holds, as types: the recipe and the records of the provenance chain.

The types describe what files may hold, and files may come from older versions or from other tools. So a key that a
reader needs is Required, and any other may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Required, TypedDict

PRM_PAIR_ACCURACY = "prm_pair_accuracy"
"""In a record of update-prm: the share of right/wrong pairs in the batch that the PRM ranked correctly before it was
trained on them, null if there were no pairs, missing if nothing was measured. In one of score-prm: that of the last
update of its PRM with pairs; null if there was none, missing if the last update did not measure it."""


class StoredBatch(TypedDict):
    """The inputs of a shard that is made from more shards than its footer names; see `primecli.shards.batches`.

    shards: their number. content: hash of the hashes of their contents, in order. listed_in: the file name of the shard
    of the same directory whose footer names them all.
    """

    shards: int
    content: str
    listed_in: str


class StoredRecipe(TypedDict, total=False):
    """What a result depends on, as `primecli.pipeline.recipe.Recipe` has it.

    inputs: hashes of their contents; with `batch`, of the one that the shard was made from.
    """

    stage: str
    schema_version: int
    config: dict[str, Any]
    models: dict[str, str | None]
    inputs: list[str]
    batch: StoredBatch
    seed: int | None


class StoredInput(TypedDict, total=False):
    """An input shard of a command: its path as the command was given it, and the hash of its content."""

    path: Required[str]
    content: str


class StoredRecord(TypedDict, total=False):
    """One command of a provenance chain.

    stage: such as verify. version: of primecli. command: its command line, quoted for a shell. directory: where it was
    run, which relative paths start from. elsewhere: options from environment variables and files, as words.
    config: all options, by name. inputs: the shards it read. batch: where `inputs` is but one of these, all of them.
    models: fingerprints, by role. fingerprint: of the recipe.
    token_identity: hash of the text of every token id, from `generate`. prm_pair_accuracy: from `update-prm` and
    `score-prm`, see `PRM_PAIR_ACCURACY`. started: in UTC, as ISO 8601. seconds: of wall
    time.
    """

    stage: str
    version: str
    command: str
    directory: str
    elsewhere: list[str]
    config: dict[str, Any]
    inputs: list[StoredInput]
    batch: StoredBatch
    models: dict[str, str | None]
    seed: int | None
    fingerprint: str
    token_identity: str
    prm_pair_accuracy: float | None
    started: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StoredFooter:
    """The JSON in a shard's footer; see `primecli.shards.parquet.Footer`."""

    schema_version: int
    fingerprint: str
    content: str
    recipe: StoredRecipe
    counts: dict[str, float]
    provenance: tuple[StoredRecord, ...]
