"""Command lines for every command that reads shards, and a directory of shards that suits all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from primecli.models.identity import model_fingerprint
from primecli.shards import schema
from tests.builders import rollouts, write_shards

SHARDS = object()
"""Stands for the shards in a command line."""

LIGHT = (
    "verify",
    "filter",
    "compute-advantages",
    "inspect",
    "stats",
    "query",
    "validate",
    "audit",
    "evaluate",
    "lineage",
)
"""Commands that load no model."""

VALUES = (schema.PROCESS_REWARDS, schema.VALUES, schema.ADVANTAGES, schema.RETURNS)


def make_shards(directory: Path, model: Path) -> Path:
    """Two shards with every column, as if this model had sampled them."""
    rows = rollouts(4, 4, policy_fingerprint=model_fingerprint(model))
    draws = np.random.default_rng(0)
    for row in rows:
        row |= {name: draws.normal(size=len(row[schema.RESPONSE_IDS])).tolist() for name in VALUES}
    return write_shards(directory, rows, per_shard=8)


def command_lines(model: Path, made: Path) -> dict[str, list[object]]:
    """The commands that read shards, by name. made: the directory for what they write."""
    common = ["--micro-batch-tokens", 64, "--device", "cpu"]
    scored = [*common, "--out", made / "out"]
    updated = [*common, "--checkpoint", made / "checkpoint"]
    return {
        "verify": ["--out", made / "out", SHARDS],
        "filter": ["--out", made / "out", SHARDS],
        "compute-advantages": ["--out", made / "out", SHARDS],
        "score-prm": ["--prm", model, "--ref", model, *scored, SHARDS],
        "score-values": ["--critic", model, *scored, SHARDS],
        "update-prm": ["--prm", model, "--ref", model, *updated, SHARDS],
        "update-critic": ["--critic", model, *updated, SHARDS],
        "update-policy": ["--policy", model, "--old-logprobs", "rollout", *updated, SHARDS],
        "check-logprobs": ["--model", model, *common, SHARDS],
        "inspect": [SHARDS, "--row", 3],
        "stats": [SHARDS],
        "query": [SHARDS, "SELECT count(*), sum(outcome_reward) FROM rollouts"],
        "validate": [SHARDS],
        "audit": [SHARDS, "--json"],
        "evaluate": [SHARDS],
        "lineage": [SHARDS],
        "export": ["--format", "trl", "--out", made / "out.jsonl", "--force", "--tokenizer", model, SHARDS],
    }
