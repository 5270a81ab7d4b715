"""What update-policy adds to the plain loss, and what it reports. What all updates share is in test_updates.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from primecli.models.device import resolve_placement
from primecli.models.identity import model_fingerprint
from primecli.models.loading import load_model
from primecli.models.scoring import score
from primecli.shards import schema
from primecli.shards.rollouts import Sequences
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary


def batch(directory: Path, policy: Path, **columns: Any) -> Path:
    """Four groups of four with advantages and the policy's own log-probabilities, as from an exact sampler."""
    rows = rollouts(4, 4, policy_fingerprint=model_fingerprint(policy), **columns)
    generator = np.random.default_rng(0)
    for row, logprobs in zip(rows, own_logprobs(rows, policy), strict=True):
        row[schema.ROLLOUT_LOGPROBS] = logprobs.tolist()
        row[schema.ADVANTAGES] = generator.normal(size=len(logprobs)).tolist()
    return write_shards(directory, rows)


def own_logprobs(rows: list[dict[str, Any]], model: Path, temperature: float = 1.0) -> list[np.ndarray]:
    place = resolve_placement("cpu", "float32")
    sequences = Sequences(
        [np.array(row[schema.PROMPT_IDS]) for row in rows],
        [np.array(row[schema.RESPONSE_IDS]) for row in rows],
        np.full(len(rows), temperature, dtype=np.float32),
    )
    flat = score(load_model(model, place), place, sequences, micro_batch_tokens=10**6)
    return np.split(flat, np.cumsum([len(row[schema.RESPONSE_IDS]) for row in rows])[:-1])


def train(primecli: Any, policy: Path, directory: Path, target: Path, *options: Any) -> dict[str, float]:
    common = ["--policy", policy, "--checkpoint", target, directory, "--mini-batch", 1000, "--lr", "1e-3"]
    primecli("update-policy", *common, *options)
    return dict(summary(target)["metrics"])


def weights(checkpoint: Path) -> torch.Tensor:
    tensors = load_file(checkpoint / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_an_exact_sampler_has_no_gap(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    found = train(primecli, tiny, directory, tmp_path / "1", "--max-logprob-gap", 1e-4)
    assert found["logprob_gap_max"] < 1e-4
    assert found["effective_sample_size"] == pytest.approx(1, abs=1e-6)
    assert found["ratio_min"] == found["ratio_max"] == 1


@pytest.mark.parametrize("mini_batch", [1000, 4])
def test_too_large_a_gap_stops_the_update(mini_batch: int, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = read_rows(batch(tmp_path / "in", tiny))
    for row in rows:
        row[schema.ROLLOUT_LOGPROBS] = [value - 0.5 for value in row[schema.ROLLOUT_LOGPROBS]]
    directory = write_shards(tmp_path / "off", rows)
    target = tmp_path / "1"
    common = ["update-policy", "--policy", tiny, "--checkpoint", target, directory, "--mini-batch", mini_batch]
    result = primecli(*common, "--max-logprob-gap", 0.4, check=False)
    assert (result.code, result.paths, target.exists()) == (5, [], False)
    assert "the mean gap |rollout_logprobs - old_logprobs| is 0.5 nats, and --max-logprob-gap is 0.4" in result.line()
    primecli(*common, "--max-logprob-gap", 0.6)
    assert summary(target)["metrics"]["logprob_gap_p95"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("option", ["--max-logprob-gap", "--tis-cap"])
def test_options_on_the_gap_need_recomputed_logprobs(option: str, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    common = ["update-policy", "--policy", tiny, "--checkpoint", tmp_path / "1", directory, option, 2]
    result = primecli(*common, "--old-logprobs", "rollout", check=False)
    assert (result.code, "leave --old-logprobs at recompute" in result.line()) == (2, True)


def test_importance_weights_correct_for_the_sampler(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = read_rows(batch(tmp_path / "in", tiny))
    for row in rows:  # the sampler's probability is twice, or a quarter of, the trainer's
        shift = np.log(2) if row[schema.SAMPLE_INDEX] % 2 else -np.log(4)
        row[schema.ROLLOUT_LOGPROBS] = [value + shift for value in row[schema.ROLLOUT_LOGPROBS]]
    directory = write_shards(tmp_path / "off", rows)
    found = train(primecli, tiny, directory, tmp_path / "1", "--tis-cap", 3)
    tokens = [[len(row[schema.RESPONSE_IDS]), row[schema.SAMPLE_INDEX] % 2] for row in rows]
    total = sum(length for length, _ in tokens)
    halved = sum(length for length, odd in tokens if odd) / total
    assert found["importance_weight"] == pytest.approx(0.5 * halved + 3 * (1 - halved), abs=1e-4)
    assert found["importance_capped"] == pytest.approx(1 - halved)
    advantages = [(np.mean(row[schema.ADVANTAGES]), len(row[schema.RESPONSE_IDS])) for row in rows]
    weighed = sum(
        (0.5 if odd else 3) * mean * length for (mean, length), (_, odd) in zip(advantages, tokens, strict=True)
    )
    assert found["loss"] == pytest.approx(-weighed / total, abs=1e-4)


def test_kl_and_entropy_enter_the_loss(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    plain = train(primecli, tiny, directory, tmp_path / "plain")
    watched = train(primecli, tiny, directory, tmp_path / "watched", "--ref", other)
    assert torch.equal(weights(tmp_path / "plain"), weights(tmp_path / "watched"))
    assert watched["kl_ref"] > 0.001
    penalised = train(primecli, tiny, directory, tmp_path / "kl", "--ref", other, "--kl-coef", 0.3)
    assert penalised["loss"] == pytest.approx(plain["loss"] + 0.3 * watched["kl_ref"], abs=1e-5)
    lively = train(primecli, tiny, directory, tmp_path / "entropy", "--entropy-coef", 0.2)
    assert lively["loss"] == pytest.approx(plain["loss"] - 0.2 * plain["entropy"], abs=1e-5)
    assert len({bytes(weights(tmp_path / name).numpy()) for name in ("plain", "kl", "entropy")}) == 3


def test_a_stored_reference_equals_the_model(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    primecli("score-prm", "--prm", tiny, "--ref", other, directory, "--out", tmp_path / "score-prm")
    common = ["--kl-coef", 1, "--kl", "k2"]
    train(primecli, tiny, directory, tmp_path / "dir", "--ref", other, *common)
    train(primecli, tiny, tmp_path / "score-prm", tmp_path / "stored", "--ref", "shards", *common)
    assert torch.equal(weights(tmp_path / "dir"), weights(tmp_path / "stored"))


def test_the_reference_is_taken_at_the_sampling_temperature(
    tiny: Path, other: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = batch(tmp_path / "in", tiny, temperature=0.5)
    found = train(primecli, tiny, directory, tmp_path / "1", "--ref", other, "--kl", "k1")
    rows = read_rows(directory)
    ours, theirs = (np.concatenate(own_logprobs(rows, model, 0.5)) for model in (tiny, other))
    assert found["kl_ref"] == pytest.approx(float((ours - theirs).mean()), abs=1e-5)
    primecli("score-prm", "--prm", tiny, "--ref", other, directory, "--out", tmp_path / "score-prm")
    common = ["--policy", tiny, "--checkpoint", tmp_path / "2", tmp_path / "score-prm", "--ref", "shards"]
    result = primecli("update-policy", *common, check=False)
    assert (result.code, "--ref shards needs rollouts sampled with temperature 1" in result.line()) == (3, True)


def test_kl_needs_a_reference(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    common = ["--policy", tiny, "--checkpoint", tmp_path / "1", batch(tmp_path / "in", tiny), "--kl-coef", 1]
    result = primecli("update-policy", *common, check=False)
    assert (result.code, "--kl-coef needs a reference" in result.line()) == (2, True)
    result = primecli("update-policy", *common, "--ref", "shards", check=False)
    assert (result.code, "lacks the column ref_logprobs" in result.line()) == (3, True)


def test_the_update_is_measured_on_some_of_its_rollouts(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    found = train(primecli, tiny, directory, tmp_path / "1", "--measure", 3)
    rows = [read_rows(directory)[row] for row in (0, 7, 15)]  # evenly spaced from the first to the last
    before, after = (np.concatenate(own_logprobs(rows, model)).astype(float) for model in (tiny, tmp_path / "1"))
    change = after - before
    assert found["kl_update"] == pytest.approx(float(np.mean(np.exp(change) - 1 - change)), rel=1e-3)
    assert found["ratio_update_max"] == pytest.approx(float(np.exp(change.max())), rel=1e-4)
    assert found["ratio_update_min"] == pytest.approx(float(np.exp(change.min())), rel=1e-4)
    assert found["kl_update"] > 1e-6
    assert "kl_update" not in train(primecli, tiny, directory, tmp_path / "2", "--measure", 0)
    assert torch.equal(weights(tmp_path / "1"), weights(tmp_path / "2"))


def test_ratio_extremes_cover_all_steps(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    primecli(
        "update-policy", "--policy", tiny, "--checkpoint", tmp_path / "1", directory, "--mini-batch", 4, "--lr", 1e-2
    )
    steps = [json.loads(line) for line in (tmp_path / "1/trainer/steps.jsonl").read_text().splitlines()]
    found = summary(tmp_path / "1")["metrics"]
    assert found["ratio_max"] == max(step["ratio_max"] for step in steps) > 1.01
    assert found["ratio_min"] == min(step["ratio_min"] for step in steps) < 0.99
    assert found["entropy"] == pytest.approx(np.mean([step["entropy"] for step in steps]))


def test_health_of_the_batch(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = read_rows(batch(tmp_path / "in", tiny))
    for row in rows[:4]:
        row[schema.FINISH_REASON] = "length"
    for row in rows:
        row[schema.OUTCOME_ADVANTAGES] = [0.25 * value for value in row[schema.ADVANTAGES]]
        row[schema.PROCESS_ADVANTAGES] = [0.75 * value for value in row[schema.ADVANTAGES]]
    found = train(primecli, tiny, write_shards(tmp_path / "more", rows), tmp_path / "1")
    lengths = [len(row[schema.RESPONSE_IDS]) for row in rows]
    assert found["truncation_rate"] == 0.25
    assert found["response_tokens"] == pytest.approx(float(np.mean(lengths)))
    assert found["response_tokens_max"] == max(lengths)
    assert found["outcome_variance_share"] == pytest.approx(0.25, abs=1e-6)
    assert found["process_variance_share"] == pytest.approx(0.75, abs=1e-6)
    assert found["peak_memory_gib"] > 0.1


def test_without_a_clip_no_token_is_clipped(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    common = ["--policy", tiny, directory, "--mini-batch", 4, "--lr", 1e-2]
    primecli("update-policy", *common, "--checkpoint", tmp_path / "clip", "--clip-low", 0.01, "--clip-high", 0.01)
    primecli("update-policy", *common, "--checkpoint", tmp_path / "plain", "--no-clip")
    clipped, plain = (summary(tmp_path / name)["metrics"]["clip_fraction"] for name in ("clip", "plain"))
    assert clipped > 0.1
    assert plain == 0


def test_truncated_sampling_is_a_warning_or_refused(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny, top_p=0.9)
    common = ["update-policy", "--policy", tiny, "--checkpoint", tmp_path / "1", directory]
    refused = primecli(*common, "--strict", check=False)
    assert (refused.code, (tmp_path / "1").exists()) == (3, False)
    assert "16 of 16 rollouts were sampled with top-p or top-k" in refused.line()
    assert "16 of 16 rollouts were sampled with top-p or top-k" in primecli(*common, "--quiet").err
    whole = batch(tmp_path / "whole", tiny)
    common = ["update-policy", "--policy", tiny, "--checkpoint", tmp_path / "2", whole, "--strict", "--quiet"]
    assert primecli(*common).err == ""
