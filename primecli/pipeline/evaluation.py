"""`_evaluation.json`: what `primecli evaluate` found out about the shards beside it, for the report and `watch`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from primecli.files import Json, write_json_atomically
from primecli.structures import read_json

EVALUATION_NAME = "_evaluation.json"
AT_N = {"pass": "pass@n", "maj": "maj@n", "best": "best@n"}
"""The names under which a report shows a metric at the largest k, by its name before the @: the same for every n."""


class _Metric(TypedDict):
    value: float | None


class _Metrics(TypedDict):
    metrics: dict[str, _Metric]


class _Evaluation(TypedDict):
    all: _Metrics


def write_evaluation(directory: Path, evaluation: Mapping[str, Json]) -> None:
    """Writes an evaluation into the directory of the shards that it is of, whole or not at all."""
    write_json_atomically(directory / EVALUATION_NAME, evaluation)


def read_metrics(directory: Path) -> dict[str, float]:
    """The metrics over all data sources of the evaluation in a directory, by name; those without a value are left out.

    Adds those of AT_N.

    Raises InputError if there is no evaluation or it cannot be read.
    """
    stored = read_json(directory / EVALUATION_NAME, _Evaluation, "evaluate the shards again")
    found = stored["all"]["metrics"]
    metrics = {name: metric["value"] for name, metric in found.items() if metric["value"] is not None}
    at_n = {}
    for kind, name in AT_N.items():
        ks = [int(match[1]) for match in map(re.compile(rf"{kind}@(\d{{1,9}})").fullmatch, metrics) if match]
        if ks:
            at_n[name] = metrics[f"{kind}@{max(ks)}"]
    return {**metrics, **at_n}
