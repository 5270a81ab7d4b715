"""`_evaluation.json`: what `primecli evaluate` found out about the shards beside it, for the report and `watch`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.files import Json, read_json, write_json_atomically

EVALUATION_NAME = "_evaluation.json"
AT_N = {"pass": "pass@n", "maj": "maj@n", "best": "best@n"}
"""The names under which a report shows a metric at the largest k, by its name before the @: the same for every n."""


def write_evaluation(directory: Path, evaluation: Mapping[str, Json]) -> None:
    """Writes an evaluation into the directory of the shards that it is of, whole or not at all."""
    write_json_atomically(directory / EVALUATION_NAME, evaluation)


def read_metrics(directory: Path) -> dict[str, float]:
    """The metrics over all data sources of the evaluation in a directory, by name; those without a value are left out.

    Adds those of AT_N.

    Raises InputError if there is no evaluation or it cannot be read.
    """
    path = directory / EVALUATION_NAME
    try:
        found: dict[str, Any] = read_json(path)["all"]["metrics"]
        metrics = {name: float(metric["value"]) for name, metric in found.items() if metric["value"] is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "evaluate the shards again") from error
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    at_n = {}
    for kind, name in AT_N.items():
        ks = [int(found.partition("@")[2]) for found in metrics if found.startswith(f"{kind}@")]
        if ks:
            at_n[name] = metrics[f"{kind}@{max(ks)}"]
    return {**metrics, **at_n}
