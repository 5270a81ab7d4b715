"""What update-prm measures before and after, and its dpo loss. What all updates share is in test_updates.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary

GROUPS, SIZE = 6, 4


def train(primecli: Any, prm: Path, ref: Path | str, directory: Path, target: Path, *options: Any) -> dict[str, float]:
    primecli("update-prm", "--prm", prm, "--ref", ref, "--checkpoint", target, directory, *options)
    return dict(summary(target)["metrics"])


def steps_of(checkpoint: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (checkpoint / "trainer/steps.jsonl").read_text().splitlines()]


def test_metrics_before_and_after_agree_with_score_prm(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE), per_shard=SIZE)
    found = train(primecli, other, tiny, directory, tmp_path / "1", "--lr", "3e-3", "--epochs", 4, "--beta", 0.3)
    for when, prm in [("before", other), ("after", tmp_path / "1")]:
        out = tmp_path / f"scored-{when}"
        primecli("score-prm", "--prm", prm, "--ref", tiny, "--beta", 0.3, directory, "--out", out)
        rows = read_rows(out)
        scores = np.array([np.sum(row[schema.PROCESS_REWARDS], dtype=np.float64) for row in rows])
        labels = np.array([row[schema.OUTCOME_REWARD] for row in rows])
        predicted = 1 / (1 + np.exp(-scores))
        loss = -np.mean(labels * np.log(predicted) + (1 - labels) * np.log(1 - predicted))
        assert found[f"loss_{when}"] == pytest.approx(loss, abs=1e-5)
        assert found[f"reward_right_{when}"] == pytest.approx(scores[labels == 1].mean(), abs=1e-5)
        assert found[f"reward_wrong_{when}"] == pytest.approx(scores[labels == 0].mean(), abs=1e-5)
        assert found[f"sign_accuracy_{when}"] == np.mean((scores > 0) == (labels == 1))
        groups = [slice(start, start + SIZE) for start in range(0, len(rows), SIZE)]
        pairs = [
            right > wrong
            for rows_of in groups
            for right in scores[rows_of][labels[rows_of] == 1]
            for wrong in scores[rows_of][labels[rows_of] == 0]
        ]
        assert found[f"pair_accuracy_{when}"] == pytest.approx(np.mean(pairs))
        bins = np.minimum((predicted * 10).astype(int), 9)
        calibration = sum(abs(np.sum((predicted - labels)[bins == place])) for place in range(10)) / len(rows)
        assert found[f"calibration_error_{when}"] == pytest.approx(calibration, abs=1e-6)
    assert found["pair_accuracy_after"] > found["pair_accuracy_before"]


def test_measuring_does_not_change_the_weights(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE))
    train(primecli, other, tiny, directory, tmp_path / "1")
    found = train(primecli, other, tiny, directory, tmp_path / "2", "--no-evaluate")
    assert not any(name.endswith(("_before", "_after")) for name in found)
    names = ("model.safetensors", "trainer/optimizer.safetensors")
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in names)


def test_dpo_learns_and_takes_whole_groups(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE))
    options = ["--loss", "dpo", "--lr", "3e-3", "--epochs", 10, "--mini-batch", SIZE + 1, "--beta", 0.5]
    found = train(primecli, tiny, tiny, directory, tmp_path / "1", *options)
    assert found["loss_before"] == pytest.approx(np.log(2), abs=1e-6)
    assert found["loss_after"] < 0.3
    assert found["pair_accuracy_after"] > 0.95
    steps = steps_of(tmp_path / "1")
    assert len(steps) == 10 * GROUPS  # one group fits, a second does not
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("budget", [1, 10**6])
def test_dpo_does_not_depend_on_micro_batches(
    budget: int, tiny: Path, other: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE))
    options = ["--loss", "dpo", "--lr", "1e-3", "--mini-batch", 8, "--beta", 0.5]
    found = train(primecli, other, tiny, directory, tmp_path / "1", *options, "--micro-batch-tokens", budget)
    whole = train(primecli, other, tiny, directory, tmp_path / "2", *options)
    assert found["loss_after"] == pytest.approx(whole["loss_after"], abs=1e-5)
    assert found["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_dpo_with_one_process_per_step_equals_one_process(
    tiny: Path, other: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "in", rollouts(3, SIZE), per_shard=SIZE)
    options = ["--loss", "dpo", "--mini-batch", SIZE, "--no-shuffle", "--no-evaluate", "--beta", 0.5, "--lr", "1e-3"]
    train(primecli, other, tiny, directory, tmp_path / "whole", *options)
    prm = other
    for number, shard in enumerate(sorted(directory.glob("*.parquet"))):
        train(primecli, prm, tiny, shard, tmp_path / f"step{number}", *options)
        prm = tmp_path / f"step{number}"
    assert (prm / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_a_stored_reference_equals_the_model(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE), per_shard=SIZE)
    primecli("score-prm", "--prm", other, "--ref", tiny, directory)
    scored = tmp_path / "score-prm"
    train(primecli, other, tiny, directory, tmp_path / "model", "--lr", "1e-3")
    train(primecli, other, "shards", scored, tmp_path / "stored", "--lr", "1e-3")
    names = ("model.safetensors", "trainer/optimizer.safetensors")
    assert all((tmp_path / "model" / name).read_bytes() == (tmp_path / "stored" / name).read_bytes() for name in names)
    for name, source, ref in [("a", directory, tiny), ("b", scored, "shards")]:
        primecli("score-prm", "--prm", tmp_path / "model", "--ref", ref, source, "--out", tmp_path / name)
    first, second = ([row[schema.PROCESS_REWARDS] for row in read_rows(tmp_path / name)] for name in ("a", "b"))
    assert first == second
    for stage in (["update-prm", "--checkpoint", tmp_path / "x"], ["score-prm", "--out", tmp_path / "x"]):
        result = primecli(*stage, "--prm", other, "--ref", "shards", directory, check=False)
        assert (result.code, "lacks the column ref_logprobs (made by `primecli score-prm`)" in result.line()) == (
            3,
            True,
        )


def test_a_generation_config_that_transformers_would_not_write_is_kept(
    tmp_path: Path, tiny: Path, primecli: Any
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    path = model / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6, "do_sample": False}))
    shards = write_shards(tmp_path / "in", rollouts(2, 2))
    primecli("update-prm", "--prm", model, "--ref", model, "--checkpoint", tmp_path / "prm", shards, "--quiet")
    assert (tmp_path / "prm" / "generation_config.json").read_bytes() == path.read_bytes()
    path.unlink()
    primecli("update-prm", "--prm", model, "--ref", model, "--checkpoint", tmp_path / "without", shards, "--quiet")
    assert not (tmp_path / "without" / "generation_config.json").exists()
