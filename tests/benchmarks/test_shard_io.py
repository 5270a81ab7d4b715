from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from primecli.shards import schema
from tests.benchmarks import shard_io


def test_the_share_and_the_speed_at_the_limit_agree() -> None:
    fastest = shard_io.fastest_models(2.0, 10_000, 0.03)
    assert shard_io.share(2.0, 10_000 / fastest) == pytest.approx(0.03)


def test_all_columns_are_read_and_written(tmp_path: Path) -> None:
    options = argparse.Namespace(rows=8, tokens=9, words=50, width=64, layers=1, scored=2, micro_batch_tokens=64)
    shard_io.make(tmp_path, options)
    spent = shard_io.one_round(tmp_path, argparse.Namespace(**vars(options), threads=None))
    assert spent["read"] > 0
    assert spent["write"] > 0
    before = pq.read_table(tmp_path / "rollouts-00000-of-00001.parquet")
    after = pq.read_table(tmp_path / "out" / "rollouts-00000-of-00001.parquet")
    assert after.column_names == [*before.column_names, *schema.made_by("score-prm")]
    assert after.select(before.column_names).equals(before)
    lengths = [len(ids) for name in ("prompt_ids", "response_ids") for ids in before[name].to_pylist()]
    assert spent["tokens"] == sum(lengths)
    assert np.isfinite(after["process_rewards"].combine_chunks().flatten().to_numpy()).all()
