"""Run directories made by hand, as a loop of stages leaves them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from primecli.catalog import SHARD_STAGES
from primecli.pipeline.summary import Status, Summary
from primecli.shards import parquet, schema
from tests.builders import rollout, write_shards

STARTED = "2026-01-02T03:{minute:02d}:00+00:00"


def write_summary(directory: Path, stage: str, *, status: Status = "complete", minute: int = 0, **fields: Any) -> Path:
    """`_summary.json` of a stage that started in this minute; keyword arguments are its other fields."""
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in directory.glob("*.parquet"))
    defaults = {"seconds": 10.0, "started": STARTED.format(minute=minute), "shards": names}
    Summary(stage, status, **{**defaults, **fields}).write(directory)
    return directory


def write_stage(directory: Path, rows: Sequence[Mapping[str, Any]], *, minute: int = 0, **metrics: float) -> Path:
    """The directory of the stage that it is named after: one shard of these rows, and the summary."""
    write_shards(directory, rows)
    return write_summary(directory, directory.name, rows=len(rows), minute=minute, metrics=metrics)


def scored(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """The rows with random process rewards and advantages."""
    rng = np.random.default_rng(seed)
    scored_rows = []
    for row in rows:
        count = len(row[schema.RESPONSE_IDS])
        values = {
            name: rng.normal(scale=0.1, size=count).astype(np.float32).tolist()
            for name in (schema.PROCESS_REWARDS, schema.ADVANTAGES)
        }
        scored_rows.append({**row, **values})
    return scored_rows


def make_run(root: Path, *, iterations: int = 3, groups: int = 4, size: int = 4, **columns: Any) -> Path:
    """A run of whole iterations. The filter drops the first group of each; iteration 0 and the last are evaluated.

    Training accuracy is iteration / 10, evaluation accuracy 0.2 more, the PRM's pair accuracy 0.5 + iteration / 10.
    """
    for iteration in range(1, iterations + 1):
        start, minute = 100 * iteration, 5 * iteration
        rows = [rollout(start + group, index, size, **columns) for group in range(groups) for index in range(size)]
        for row in rows:
            row[schema.RESPONSE_IDS] = [ord(character) % 250 for character in f"{row[schema.GROUP_ID]}, step\n"]
            row[schema.ROLLOUT_LOGPROBS] = [-0.1 * index for index in range(len(row[schema.RESPONSE_IDS]))]
        where = root / str(iteration)
        write_stage(where / "generate", rows, minute=minute, response_tokens=10.0 + iteration, truncated=0.0)
        write_stage(where / "verify", rows, minute=minute, accuracy=iteration / 10)
        kept = rows[size:]
        write_stage(where / "filter", kept, minute=minute, kept=groups - 1, too_hard=1)
        write_stage(where / "compute-advantages", scored(kept, seed=iteration), minute=minute)
        prm = {"pair_accuracy_before": 0.5 + iteration / 10, "pair_accuracy_after": 0.9}
        write_summary(root / "prm" / str(iteration), "update-prm", rows=len(kept), minute=minute, metrics=prm)
        policy = {"entropy": 1 / iteration, "kl_update": 0.01 * iteration, "lr": 1e-4}
        config = {"lr": 1e-4, "policy": f"{root}/policy/{iteration - 1}"}
        write_summary(
            root / "policy" / str(iteration),
            "update-policy",
            rows=len(kept),
            minute=minute,
            metrics=policy,
            config=config,
        )
    for iteration in (0, iterations):
        rows = [rollout(900 + iteration, index, 2, **columns) for index in range(2)]
        for stage in ("generate", "verify"):
            metrics = {"accuracy": 0.2 + iteration / 10} if stage == "verify" else {}
            write_stage(root / "eval" / str(iteration) / stage, rows, minute=5 * iteration + 4, **metrics)
    return root


def age(root: Path) -> Path:
    """The run, its summaries last modified at 1e9 seconds since 1970: nothing is being written any more."""
    for path in root.rglob("_summary.json"):
        os.utime(path, (1e9, 1e9))
    return root


def trained_rows(root: Path) -> list[dict[str, Any]]:
    """The rows of every shard that reached compute-advantages, read without primecli."""
    import pyarrow.parquet as pq

    paths = sorted(root.glob(f"*/{SHARD_STAGES[-1]}/{parquet.shard_name(0, 1)}"))
    return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


def make_byte_tokenizer(directory: Path) -> Path:
    """A `tokenizer.json` with the 256 bytes and, as 256, the special token `<eos>`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
