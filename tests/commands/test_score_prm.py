from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from primecli.models.device import resolve_placement
from primecli.models.loading import load_model
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows


def exact(directory: Path, row: dict[str, Any]) -> np.ndarray:
    """Log-probabilities from the full logits, one row at a time, in float64."""
    model = load_model(directory, resolve_placement("cpu", "float32"), dtype=torch.float64)
    prompt, response = row[schema.PROMPT_IDS], row[schema.RESPONSE_IDS]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])
    return np.asarray(chosen.squeeze(-1))


def test_rewards_are_the_scaled_log_ratio(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(3, 2), per_shard=2)
    options = ["--prm", other, "--ref", tiny, "--beta", 0.2, "--micro-batch-tokens", 17]
    result = primecli("score-prm", directory, *options)
    assert len(result.paths) == 3
    for row in read_rows(tmp_path / "score-prm"):
        prm, ref = exact(other, row), exact(tiny, row)
        np.testing.assert_allclose(row[schema.PRM_LOGPROBS], prm, atol=2e-6)
        np.testing.assert_allclose(row[schema.REF_LOGPROBS], ref, atol=2e-6)
        np.testing.assert_allclose(row[schema.PROCESS_REWARDS], 0.2 * (prm - ref), atol=1e-6)


def test_a_prm_equal_to_the_reference_gives_no_reward(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(2, 2))
    primecli("score-prm", directory, "--prm", tiny, "--ref", tiny)
    assert not any(any(row[schema.PROCESS_REWARDS]) for row in read_rows(tmp_path / "score-prm"))


def test_the_sampler_can_be_the_reference(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(2, 2))
    primecli("score-prm", directory, "--prm", tiny, "--ref", "rollout")
    for row in read_rows(tmp_path / "score-prm"):
        assert row[schema.REF_LOGPROBS] == row[schema.ROLLOUT_LOGPROBS]


def test_the_sampler_cannot_be_the_reference_at_another_temperature(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(2, 2, temperature=0.5))
    result = primecli("score-prm", directory, "--prm", tiny, "--ref", "rollout", check=False)
    assert (result.code, "--ref rollout needs rollouts sampled with temperature 1" in result.line()) == (3, True)


def test_token_ids_of_another_tokenizer_are_named(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(1, 2)
    rows[1][schema.RESPONSE_IDS][0] = 258
    result = primecli("score-prm", write_shards(tmp_path / "f", rows), "--prm", tiny, "--ref", tiny, check=False)
    assert (result.code, "holds the token id 258" in result.line()) == (3, True)


def test_the_same_weights_with_another_configuration_are_another_model(
    tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(2, 2))
    model = shutil.copytree(tiny, tmp_path / "model")
    primecli("score-prm", directory, "--prm", model, "--ref", tiny)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    primecli("score-prm", directory, "--prm", model, "--ref", tiny)
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    result = primecli("score-prm", directory, "--prm", model, "--ref", tiny, check=False)
    assert (result.code, "model prm was" in result.line()) == (1, True)


def test_a_warning_if_beta_differs_from_training(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(2, 2))
    primecli("update-prm", directory, "--prm", tiny, "--ref", tiny, "--checkpoint", tmp_path / "prm", "--beta", 0.2)
    warned = primecli("score-prm", directory, "--prm", tmp_path / "prm", "--ref", tiny)
    assert "was trained with --beta 0.2, but scores with --beta 0.05" in warned.err


def test_a_warning_if_the_objective_is_another(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory, prm = write_shards(tmp_path / "filter", rollouts(2, 2)), tmp_path / "prm"
    primecli("update-prm", directory, "--prm", tiny, "--ref", tiny, "--checkpoint", prm, "--loss", "prefix", "--quiet")
    score = ["score-prm", directory, "--prm", prm, "--ref", tiny, "--quiet"]
    both = primecli(*score, "--objective", "ce", "--out", tmp_path / "1")
    assert "was trained with --loss prefix --beta 10, but scores with --objective ce --beta 0.05" in both.line()
    one = primecli(*score, "--objective", "ce", "--beta", 10, "--out", tmp_path / "2")
    assert one.line().endswith("was trained with --loss prefix, but scores with --objective ce")
    assert not primecli(*score, "--objective", "prefix", "--beta", 10, "--out", tmp_path / "3").err
    assert not primecli(*score, "--beta", 10, "--out", tmp_path / "4").err


def test_earlier_columns_do_not_change(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(2, 2)
    directory = write_shards(tmp_path / "filter", rows)
    primecli("score-prm", directory, "--prm", tiny, "--ref", tiny)
    before = read_rows(directory)
    after = [{name: row[name] for name in before[0]} for row in read_rows(tmp_path / "score-prm")]
    assert after == before


def test_lists_of_different_lengths_are_named(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(1, 2)
    rows[1][schema.ROLLOUT_LOGPROBS] = rows[1][schema.ROLLOUT_LOGPROBS][:-1]
    result = primecli("score-prm", write_shards(tmp_path / "f", rows), "--prm", tiny, "--ref", tiny, check=False)
    assert result.code == 3
    assert "rollout_logprobs has" in result.line()
    assert "at row 1" in result.line()
