"""What a result depends on, and the provenance record that says how it was made."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from primecli import __version__
from primecli.files import Json, fingerprint
from primecli.pipeline.invocation import taken_from_elsewhere
from primecli.shards import schema
from primecli.shards.parquet import Shard


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a result depends on. Two results of one recipe are the same result.

    config: the options that change the result. models: fingerprints by role. inputs: content hashes.
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
        """Hash of the recipe."""
        return fingerprint(self.as_json())


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> str:
    """What differs between two recipes, in words."""
    if old is None:
        return "it was not written by primecli"
    found = [
        f"{part} was {old.get(part)}, is {new[part]}"
        for part in ("stage", "schema_version", "seed")
        if old.get(part) != new[part]
    ]
    for part in ("config", "models"):
        before, now = old.get(part) or {}, new[part]
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                label = f"model {key}" if part == "models" else key
                found.append(f"{label} was {before.get(key)}, is {now.get(key)}")
    if list(old.get("inputs") or []) != list(new["inputs"]):
        found.append("its input has changed")
    return "; ".join(found) or "its recipe"


def provenance_record(
    recipe: Recipe, execution: Mapping[str, Json], started: float, inputs: Sequence[Shard]
) -> dict[str, Json]:
    """One link of the provenance chain: which command made this, from what, when and in how many seconds.

    elsewhere: options that it took from variables or a file, as words of a command line.
    """
    elsewhere = taken_from_elsewhere()
    return {
        "stage": recipe.stage,
        "version": __version__,
        "command": shlex.join(["primecli", *sys.argv[1:]]),
        **({"elsewhere": elsewhere} if elsewhere else {}),
        "config": {**recipe.config, **execution},
        "inputs": [{"path": str(shard.path), "content": shard.footer.content} for shard in inputs],
        "models": dict(recipe.models),
        "seed": recipe.seed,
        "fingerprint": recipe.fingerprint(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
    }
