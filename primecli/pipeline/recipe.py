"""The recipe, which is all that a result depends on, and the provenance record, which says how it was made."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

from primecli import __version__
from primecli.files import Json, fingerprint
from primecli.pipeline.invocation import configured_options, working_directory
from primecli.shards import batches, schema
from primecli.shards.parquet import Shard


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, from which seconds can be counted even if the clock is set meanwhile.

    epoch: in seconds since 1970.
    monotonic: the same on the clock that nobody sets.
    """

    epoch: float
    monotonic: float

    @classmethod
    def now(cls) -> Self:
        """This moment."""
        return cls(time.time(), time.monotonic())

    def isoformat(self) -> str:
        """In UTC, such as 2026-01-31T12:00:00+00:00."""
        return datetime.fromtimestamp(self.epoch, UTC).isoformat(timespec="seconds")

    def seconds(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.monotonic


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a result depends on: two results of the same recipe are equal.

    stage: the stage that makes it, such as "verify".
    config: the options that change the result, by name, such as {"beta": 0.05}.
    models: fingerprints of the models it is made with, by role, such as "prm"; None for one that has no fingerprint.
    inputs: content hashes of the input shards or prompt files.
    seed: the seed of its random numbers; None if it draws none.
    """

    stage: str
    config: Mapping[str, Json]
    models: Mapping[str, str | None] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    seed: int | None = None

    def as_json(self) -> dict[str, Json]:
        """The recipe as it is stored and hashed."""
        return {
            "stage": self.stage,
            "schema_version": schema.SCHEMA_VERSION,
            "config": dict(self.config),
            "models": dict(self.models),
            "inputs": list(self.inputs),
            "seed": self.seed,
        }

    def fingerprint(self) -> str:
        """The hash of the recipe, by which an existing result is recognised."""
        return fingerprint(self.as_json())


@dataclass(frozen=True)
class BatchRecipe(Recipe):
    """The recipe of every output of a stage whose outputs each depend on all inputs; it is hashed once for all.

    shards: the inputs, in order.
    """

    shards: tuple[Shard, ...] = ()

    def fingerprint(self) -> str:
        """As of any recipe. Do not change `models` any more."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return super().fingerprint()

    @cached_property
    def _reference(self) -> dict[str, Json]:
        return batches.reference(self.shards)

    def reference(self, shard: Shard) -> dict[str, Json] | None:
        """What the output made from `shard` says of the inputs instead of naming them all; None for the first."""
        return None if shard.name == self.shards[0].name else self._reference


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> str:
    """The differences between two stored recipes, as a text such as "beta was 0.05, is 0.1; its input has changed".

    old: the recipe of an existing result; None if the result does not have one.
    """
    if old is None:
        return "it was not written by primecli"
    texts = [
        f"{part} was {old.get(part)}, is {new[part]}"
        for part in ("stage", "schema_version", "seed")
        if old.get(part) != new[part]
    ]
    for part in ("config", "models"):
        before, now = old.get(part) or {}, new[part]
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                label = f"model {key}" if part == "models" else key
                texts.append(f"{label} was {before.get(key)}, is {now.get(key)}")
    inputs, batch = new["inputs"], old.get("batch")
    if not batches.refers_to(batch, inputs) if batch else list(old.get("inputs") or []) != list(inputs):
        texts.append("its input has changed")
    return "; ".join(texts) or "its recipe"


def provenance_record(
    recipe: Recipe, execution: Mapping[str, Json], started: Moment, inputs: Sequence[Shard]
) -> dict[str, Json]:
    """One record of the provenance chain: which command made a result, from what, when, and in how many seconds.

    execution: the options that change how the result is computed, but not the result.
    started: when work on it began.
    """
    elsewhere = configured_options()  # the command line alone would not say how the result was made
    directory = working_directory()
    return {
        "stage": recipe.stage,
        "version": __version__,
        "command": shlex.join(["primecli", *sys.argv[1:]]),
        **({"directory": directory} if directory else {}),
        **({"elsewhere": elsewhere} if elsewhere else {}),
        "config": {**recipe.config, **execution},
        "inputs": [{"path": str(shard.path), "content": shard.footer.content} for shard in inputs],
        "models": dict(recipe.models),
        "seed": recipe.seed,
        "fingerprint": recipe.fingerprint(),
        "started": started.isoformat(),
        "seconds": round(started.seconds(), 3),
    }
