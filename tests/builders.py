"""Rollout shards made by hand, as another tool would write them: without a primecli footer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from primecli.shards import parquet, schema


def rollout(group: int, index: int, size: int, **columns: Any) -> dict[str, Any]:
    """One row with all that `generate` and `verify` make; keyword arguments replace columns."""
    length = 2 + (3 * group + index) % 5
    row = {
        schema.PROMPT_ID: f"p{group}",
        schema.GROUP_ID: f"p{group}@{group}",
        schema.GROUP_SIZE: size,
        schema.SAMPLE_INDEX: index,
        schema.DATA_SOURCE: "made",
        schema.ABILITY: "math",
        schema.GROUND_TRUTH: "7",
        schema.PROMPT: "3+4=",
        schema.RESPONSE: "7" if (group + index) % 2 else "8",
        schema.PROMPT_IDS: [20 + group, 11, 30],
        schema.RESPONSE_IDS: [(7 * group + 5 * index + place) % 250 for place in range(length)],
        schema.ROLLOUT_LOGPROBS: [-5.5 - 0.01 * place for place in range(length)],
        schema.TEMPERATURE: 1.0,
        schema.TOP_P: 1.0,
        schema.TOP_K: 0,
        schema.FINISH_REASON: "stop",
        schema.POLICY_FINGERPRINT: "unknown",
        schema.OUTCOME_REWARD: float((group + index) % 2),
        schema.VERDICT: "correct" if (group + index) % 2 else "wrong",
        schema.EXTRACTED_ANSWER: "7",
        schema.VERIFIER_DETAIL: None,
        schema.TESTS_PASSED: None,
        schema.TESTS_TOTAL: None,
        schema.FIRST_FAILURE: None,
    }
    row.update(columns)
    return row


def rollouts(groups: int, size: int, **columns: Any) -> list[dict[str, Any]]:
    """Whole groups."""
    return [rollout(group, index, size, **columns) for group in range(groups) for index in range(size)]


def write_shards(directory: Path, rows: Sequence[Mapping[str, Any]], *, per_shard: int | None = None) -> Path:
    """Rows as shards of `per_shard` rows, all in one when None. Returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    size = per_shard or len(rows)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    for number, part in enumerate(parts):
        names = [name for name in part[0] if name in schema.BY_NAME]
        table = pa.Table.from_pylist(list(part), schema=schema.arrow_schema(names))
        pq.write_table(table, directory / parquet.shard_name(number, len(parts)))
    return directory
