"""score-values and update-critic: PPO's critic, from a policy's weights to values that predict the returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from primecli.models.identity import model_fingerprint
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary

GROUP = 4


def batch(directory: Path, **columns: Any) -> Path:
    """Shards with one group each."""
    return write_shards(directory, rollouts(5, GROUP, **columns), per_shard=GROUP)


def returned(directory: Path, scored: Path) -> Path:
    """The scored shards with returns that a critic can learn: they depend on the token before."""
    rows = read_rows(scored)
    for row in rows:
        before = [row[schema.PROMPT_IDS][-1], *row[schema.RESPONSE_IDS][:-1]]
        row[schema.RETURNS] = np.sin(before).tolist()
    return write_shards(directory, rows, per_shard=GROUP)


def test_a_new_critic_predicts_zero(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    primecli("score-values", "--critic", tiny, batch(tmp_path / "in"))
    rows = read_rows(tmp_path / "score-values")
    assert [len(row[schema.VALUES]) for row in rows] == [len(row[schema.RESPONSE_IDS]) for row in rows]
    assert not np.concatenate([row[schema.VALUES] for row in rows]).any()
    found = summary(tmp_path / "score-values")
    assert found["metrics"]["value_mean"] == 0
    assert found["metrics"]["peak_memory_gib"] > 0.1


def learn(primecli: Any, tmp_path: Path, critic: Path, target: Path, *options: Any) -> dict[str, float]:
    if not (tmp_path / "score-values").exists():
        primecli("score-values", "--critic", critic, batch(tmp_path / "in"))
        returned(tmp_path / "gae", tmp_path / "score-values")
    primecli("update-critic", "--critic", critic, "--checkpoint", target, tmp_path / "gae", *options)
    return dict(summary(target)["metrics"])


def test_the_critic_learns_the_returns(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    options = ["--lr", "1e-2", "--epochs", 60, "--mini-batch", 1000, "--value-clip", 0]
    found = learn(primecli, tmp_path, tiny, tmp_path / "1", *options)
    assert found["explained_variance_before"] == 0
    assert found["explained_variance_after"] > 0.9
    steps = [json.loads(line) for line in (tmp_path / "1/trainer/steps.jsonl").read_text().splitlines()]
    returns = np.concatenate([row[schema.RETURNS] for row in read_rows(tmp_path / "gae")])
    assert steps[0]["loss"] == pytest.approx(0.5 * np.mean(returns**2), rel=1e-4)
    assert steps[-1]["loss"] < 0.1 * steps[0]["loss"]
    primecli("score-values", "--critic", tmp_path / "1", tmp_path / "in", "--out", tmp_path / "again")
    values = np.concatenate([row[schema.VALUES] for row in read_rows(tmp_path / "again")])
    assert np.corrcoef(values, returns)[0, 1] > 0.95


def test_a_value_depends_on_the_state_before_its_token(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    """The value of a token may not depend on the token itself."""
    learn(primecli, tmp_path, tiny, tmp_path / "1", "--lr", "1e-2", "--value-clip", 0)
    rows = read_rows(tmp_path / "in")
    for row in rows:
        row[schema.RESPONSE_IDS] = [*row[schema.RESPONSE_IDS][:-1], 249]
    changed = write_shards(tmp_path / "changed", rows)
    for name, directory in [("a", tmp_path / "in"), ("b", changed)]:
        primecli("score-values", "--critic", tmp_path / "1", directory, "--out", tmp_path / name)
    first, second = ([row[schema.VALUES] for row in read_rows(tmp_path / name)] for name in ("a", "b"))
    assert np.abs(np.concatenate(first)).max() > 1e-3
    np.testing.assert_allclose(np.concatenate(first), np.concatenate(second), atol=1e-6)


def test_the_checkpoint_is_a_token_classifier(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    learn(primecli, tmp_path, tiny, tmp_path / "1")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "1")
    assert model.config.num_labels == 1
    stored = load_file(tmp_path / "1/model.safetensors")
    assert torch.equal(stored["score.weight"], model.score.weight)
    assert "lm_head.weight" not in stored


def test_one_process_per_step_equals_one_of_all_steps(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    common = ["--mini-batch", GROUP, "--no-shuffle", "--no-evaluate"]
    learn(primecli, tmp_path, tiny, tmp_path / "whole", *common)
    critic = tiny
    for number, shard in enumerate(sorted((tmp_path / "gae").glob("*.parquet"))):
        target = tmp_path / f"step{number}"
        primecli("update-critic", "--critic", critic, "--checkpoint", target, shard, *common)
        critic = target
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (critic / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_policys_checkpoint_starts_a_critic(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(2, GROUP, policy_fingerprint=model_fingerprint(tiny))
    for row in rows:
        row[schema.ADVANTAGES] = [1.0] * len(row[schema.RESPONSE_IDS])
    primecli("update-policy", "--policy", tiny, "--checkpoint", tmp_path / "p", write_shards(tmp_path / "adv", rows))
    learn(primecli, tmp_path, tmp_path / "p", tmp_path / "1", "--lr", 0)
    policy, critic = (load_file(tmp_path / name / "model.safetensors") for name in ("p", "1"))
    assert all(torch.equal(critic[name], policy[name]) for name in policy if name in critic)
    assert set(critic) - set(policy) == {"score.weight", "score.bias"}


def test_values_of_another_critic_are_refused(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    batch(tmp_path / "in", policy_fingerprint=model_fingerprint(tiny))
    primecli("score-values", "--critic", tiny, tmp_path / "in")
    options = ["--estimator", "gae", "--process-coef", 0]
    primecli("compute-advantages", tmp_path / "score-values", *options)
    common = ["update-critic", "--checkpoint", tmp_path / "1", tmp_path / "compute-advantages"]
    result = primecli(*common, "--critic", other, check=False)
    assert (result.code, "score the values with the critic that you want to update" in result.line()) == (3, True)
    primecli(*common, "--critic", tiny)


def test_the_clip_is_around_the_stored_values(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    options = ["--lr", "1e-2", "--epochs", 5, "--mini-batch", 1000]
    found = learn(primecli, tmp_path, tiny, tmp_path / "1", *options, "--value-clip", 0.01)
    assert found["clip_fraction"] > 0.3
    assert learn(primecli, tmp_path, tiny, tmp_path / "2", *options, "--value-clip", 0)["clip_fraction"] == 0
