"""`--workers` gives what one process gives: the same rows, fingerprints and metrics, in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primecli.files import TEMPORARY_PREFIX
from primecli.shards import parquet
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary


def fingerprints(directory: Path) -> list[Any]:
    footers = [parquet.read_footer(path) for path in sorted(directory.glob("*.parquet"))]
    return [(footer.fingerprint, footer.content, footer.counts) for footer in footers]


def metrics(directory: Path) -> dict[str, float]:
    return {name: value for name, value in summary(directory)["metrics"].items() if name != "peak_memory_gib"}


def test_scores_of_two_workers_are_those_of_one(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(6, 2), per_shard=2)
    options = [directory, "--prm", other, "--ref", tiny]
    one, two = tmp_path / "one", tmp_path / "two"
    primecli("score-prm", *options, "--out", one)
    done = primecli("score-prm", directory / "rollouts-00003-of-00006.parquet", *options[1:], "--out", two)
    assert primecli("score-prm", *options, "--out", two, "--workers", 2).paths == sorted(two.glob("*.parquet"))
    assert read_rows(two) == read_rows(one)
    assert fingerprints(two) == fingerprints(one)
    assert metrics(two) == metrics(one)
    assert (summary(two)["status"], summary(two)["config"]["workers"]) == ("complete", 2)
    chain = parquet.read_footer(two / "rollouts-00000-of-00006.parquet").provenance
    assert (chain[-1]["stage"], chain[-1]["config"]["workers"]) == ("score-prm", 2)
    assert "workers" not in parquet.read_footer(done.paths[0]).provenance[-1]["config"]  # it was not made again
    assert not list(two.glob(f"{TEMPORARY_PREFIX}*"))


def test_samples_of_two_workers_are_those_of_one(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    options = ["--model", tiny, "--prompts", prompts, "--n", 2, "--max-tokens", 6, "--prompts-per-shard", 3]
    one, two = tmp_path / "one", tmp_path / "two"
    primecli("generate", *options, "--engine", "hf", "--out", one)
    made = primecli("generate", *options, "--engine", "hf", "--out", two, "--workers", 2)
    assert made.paths == sorted(two.glob("*.parquet"))
    assert read_rows(two) == read_rows(one)
    assert fingerprints(two) == fingerprints(one)
    assert metrics(two) == metrics(one)
