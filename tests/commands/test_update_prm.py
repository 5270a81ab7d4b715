"""What update-prm measures before and after, and its dpo loss. What all updates share is in test_updates.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus
from transformers import AutoModelForCausalLM

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
        summed = [np.cumsum(row[schema.PROCESS_REWARDS], dtype=np.float64) for row in rows]
        hits = [(sums > 0) == (label == 1) for sums, label in zip(summed, labels, strict=True)]
        assert found[f"prefix_accuracy_{when}"] == pytest.approx(np.mean(np.concatenate(hits)))
        spread = np.sqrt((scores[labels == 1].var() + scores[labels == 0].var()) / 2 * len(rows) / (len(rows) - 2))
        apart = scores[labels == 1].mean() - scores[labels == 0].mean()
        assert found[f"separation_{when}"] == pytest.approx(apart / spread, rel=1e-5)
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


def test_the_gradient_of_dpo_is_that_of_all_pairs(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    """In micro-batches of one response, in an order of their own, against a loop over the pairs of whole groups."""
    rows = rollouts(3, SIZE)
    for number, row in enumerate(rows):
        row[schema.OUTCOME_REWARD] = [1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.25, 1.0][number]
    options = ["--loss", "dpo", "--mini-batch", 100, "--micro-batch-tokens", 1, "--beta", 0.5, "--grad-clip", 1000]
    train(primecli, other, tiny, write_shards(tmp_path / "in", rows), tmp_path / "1", *options)
    (step,) = steps_of(tmp_path / "1")

    model, reference = (AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in (other, tiny))

    def score(row: dict[str, Any]) -> Tensor:
        ids = torch.tensor([[*row[schema.PROMPT_IDS], *row[schema.RESPONSE_IDS]]])
        first = len(row[schema.PROMPT_IDS])
        sums = [
            each(ids).logits[0, first - 1 : -1].log_softmax(-1).gather(-1, ids[0, first:, None]).sum()
            for each in (model, reference)
        ]
        difference: Tensor = sums[0] - sums[1].detach()
        return 0.5 * difference

    scores, loss = [score(row) for row in rows], torch.zeros(())
    for start in range(0, len(rows), SIZE):
        group = range(start, start + SIZE)
        pairs = [
            softplus(scores[worse] - scores[better])
            for better in group
            for worse in group
            if rows[better][schema.OUTCOME_REWARD] > rows[worse][schema.OUTCOME_REWARD]
        ]
        loss = loss + torch.stack(pairs).mean() / 3
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert step["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert step["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_dpo_leaves_out_groups_without_a_pair(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    """Also from a checkpoint with moments, by which a step without any gradient would move the weights."""
    rows = rollouts(3, SIZE)
    for row in rows[SIZE:]:
        row[schema.OUTCOME_REWARD] = 1.0
    options = ["--loss", "dpo", "--mini-batch", SIZE, "--no-shuffle", "--beta", 0.5, "--lr", "1e-3"]
    every, one = write_shards(tmp_path / "every", rows), write_shards(tmp_path / "one", rows[:SIZE])
    names = ("model.safetensors", "trainer/optimizer.safetensors")
    prm: Path = other
    for step in range(2):
        for directory in (every, one):
            train(primecli, prm, tiny, directory, tmp_path / f"{directory.name}-{step}", *options)
        found = [tmp_path / f"{name}-{step}" for name in ("every", "one")]
        assert len(steps_of(found[0])) == len(steps_of(found[1])) == 1
        assert all(len({(place / name).read_bytes() for place in found}) == 1 for name in names)
        prm = found[1]


def test_dpo_refuses_a_batch_without_a_pair(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = [{**row, schema.OUTCOME_REWARD: 1.0} for row in rollouts(2, SIZE)]
    words = ["update-prm", "--prm", tiny, "--ref", tiny, write_shards(tmp_path / "in", rows), "--loss", "dpo"]
    result = primecli(*words, "--checkpoint", tmp_path / "1", check=False)
    assert result.code == 3
    assert "no group has responses with different outcome rewards" in result.line()
    assert not (tmp_path / "1").exists()


BALANCED = ["--loss", "prefix", "--balance", "boundary,weight", "--lr", "1e-3", "--no-shuffle"]


def test_prefix_learns_on_any_scale(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE))
    ce = train(primecli, other, tiny, directory, tmp_path / "ce", "--lr", 0)
    apart = []
    for beta in (0.5, 20):
        options = ["--loss", "prefix", "--lr", "3e-3", "--epochs", 6, "--beta", beta]
        found = train(primecli, other, tiny, directory, tmp_path / str(beta), *options)
        assert found["prefix_accuracy_before"] == ce["prefix_accuracy_before"]  # the same model by the same measure
        assert found["sign_accuracy_before"] == ce["sign_accuracy_before"]
        apart.append(found["separation_before"])
        assert found["loss_after"] < found["loss_before"]
        assert found["prefix_accuracy_after"] > 0.9 > found["prefix_accuracy_before"]
        assert found["separation_after"] > 2 > found["separation_before"]
        assert found["pair_accuracy_after"] > 0.95
    assert apart[0] == pytest.approx(apart[1], rel=1e-5)


def test_the_mean_of_the_rewards_is_the_score_of_a_response_with_prefix(
    tiny: Path, other: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE))
    found = train(primecli, other, tiny, directory, tmp_path / "prm", "--loss", "prefix", "--lr", 0)
    primecli("score-prm", "--prm", other, "--ref", tiny, "--beta", 10, directory, "--out", tmp_path / "scored")
    rows = read_rows(tmp_path / "scored")
    right = [np.mean(row[schema.PROCESS_REWARDS]) for row in rows if row[schema.OUTCOME_REWARD] == 1]
    assert found["reward_right_before"] == pytest.approx(np.mean(right), abs=1e-4)
    assert found["mean_score"] == pytest.approx(
        np.mean([np.mean(row[schema.PROCESS_REWARDS]) for row in rows]), abs=1e-4
    )


@pytest.mark.parametrize("lora", [[], ["--lora-rank", 4]], ids=["all weights", "lora"])
def test_prefix_does_not_depend_on_micro_batches_or_packing(
    lora: list[Any], tiny: Path, other: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "in", rollouts(GROUPS, SIZE), per_shard=2 * SIZE)
    options = [*BALANCED, "--mini-batch", 9, *lora]
    whole = train(primecli, other, tiny, directory, tmp_path / "whole", *options, "--packing", "off")
    for number, how in enumerate((["--micro-batch-tokens", 1], ["--packing", "on", "--micro-batch-tokens", 40])):
        found = train(primecli, other, tiny, directory, tmp_path / str(number), *options, *how)
        for name in ("loss", "loss_after", "mean_score", "grad_norm"):
            assert found[name] == pytest.approx(whole[name], rel=1e-4)


def test_the_accuracy_of_a_group_is_that_of_the_whole_batch(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    """Mini-batches cut through groups, and the losses of their responses still are those in the whole batch."""
    rows = rollouts(GROUPS, SIZE)
    for row in rows[:SIZE]:
        row[schema.OUTCOME_REWARD] = float(row[schema.SAMPLE_INDEX] == 0)
    directory = write_shards(tmp_path / "in", rows)
    found = train(primecli, tiny, tiny, directory, tmp_path / "1", *BALANCED, "--lr", 0, "--mini-batch", 5)
    steps = steps_of(tmp_path / "1")
    sizes = [5, 5, 5, 5, 4]
    assert sum(size * step["loss"] for size, step in zip(sizes, steps, strict=True)) / sum(sizes) == pytest.approx(
        found["loss_before"], rel=1e-5
    )
    odds = {0.25: np.log(3), 0.5: 0.0}  # of the first group and of the others; all values are 0
    softplus = {value: np.log1p(np.exp(value)) for value in (5.0, 5.0 + np.log(3), 5.0 - np.log(3))}
    first = 0.25 * 2 * softplus[5 + odds[0.25]] + 0.75 * (2 / 3) * softplus[5 - odds[0.25]]
    assert found["loss_before"] == pytest.approx((first + 5 * softplus[5.0]) / 6, rel=1e-5)


def test_what_the_prm_was_trained_for_is_recorded(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(2, 2))
    train(primecli, tiny, tiny, directory, tmp_path / "1", *BALANCED)
    record = json.loads((tmp_path / "1/trainer/primecli.json").read_text())
    expected = {"loss": "prefix", "beta": 10.0, "margin": 5.0, "balance": ["boundary", "weight"]}
    assert record["recipe"]["config"].items() >= expected.items()
    update = ["update-prm", "--prm", tmp_path / "1", "--ref", tiny, directory, "--quiet"]
    warned = primecli(*update, "--checkpoint", tmp_path / "2")
    assert "was trained with --loss prefix --beta 10, and goes on with --loss ce --beta 0.05" in warned.line()
    assert not primecli(*update, "--loss", "prefix", "--checkpoint", tmp_path / "3").err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--loss", "dpo", "--balance", "weight"], "--balance works with --loss ce and prefix, not with dpo"),
        (["--loss", "dpo", "--margin", 1], "--margin works with --loss ce and prefix, not with dpo"),
        (["--loss", "prefix", "--balance", "weight,odds"], "'odds' is not one of boundary, weight"),
    ],
)
def test_options_that_the_objective_does_not_take(
    options: list[Any], says: str, tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "in", rollouts(2, 2))
    words = ["update-prm", "--prm", tiny, "--ref", tiny, "--checkpoint", tmp_path / "1", directory]
    result = primecli(*words, *options, check=False)
    assert (result.code, says in result.line()) == (2, True)


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
