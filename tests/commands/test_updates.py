"""What update-prm and update-policy share: bit-exact continuation, micro-batches, checkpoints, refusals."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from primecli.models import direct, scoring
from primecli.models.identity import model_fingerprint
from primecli.pipeline import pipe, progress
from primecli.pipeline.summary import Summary
from primecli.setup.tiny_model import make_model
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary

STEPS, GROUP = 10, 4
LR = "1e-6"
SAVING = ["--gradient-checkpointing", "--offload-optimizer", "--preflight"]


@pytest.fixture(scope="session")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "bf16", dtype="bfloat16")


def batch(directory: Path, policy: Path) -> Path:
    """Ten shards with one group each, with advantages."""
    rows = rollouts(STEPS, GROUP, policy_fingerprint=model_fingerprint(policy))
    generator = np.random.default_rng(0)
    for row in rows:
        row[schema.ADVANTAGES] = generator.normal(size=len(row[schema.RESPONSE_IDS])).tolist()
    return write_shards(directory, rows, per_shard=GROUP)


def command(stage: str, model: Path, ref: Path, checkpoint: Path) -> list[Any]:
    common = [stage, "--checkpoint", checkpoint, "--mini-batch", GROUP, "--no-shuffle", "--lr", LR]
    if stage == "update-prm":
        return [*common, "--prm", model, "--ref", ref]
    return [*common, "--policy", model, "--old-logprobs", "rollout", "--max-staleness", STEPS]


def weights(checkpoint: Path) -> dict[str, bytes]:
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("stage", "options", "passes"),
    [
        ("update-prm", [], 4),  # the reference, before, the epoch, after
        ("update-prm", ["--no-evaluate", "--epochs", 2], 3),
        ("update-policy", [], 1),
        ("update-policy", ["--old-logprobs", "recompute", "--kl-coef", "0.1", "--ref"], 3),
    ],
)
def test_all_that_takes_long_is_in_the_progress(
    stage: str, options: list[Any], passes: int, tiny: Path, tmp_path: Path, primecli: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    directory = batch(tmp_path / "in", tiny)
    options = [*options, tiny] if "--ref" in options else options
    result = primecli(*command(stage, tiny, tiny, tmp_path / "out"), directory, *options)
    counted = re.findall(rf"primecli {stage}: (\d+) of (\d+) rollouts", result.err)
    rows = str(passes * STEPS * GROUP)
    assert counted[-1] == (rows, rows)
    assert {total for _, total in counted} == {rows}


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
def test_ten_processes_of_one_step_equal_one_process_of_ten(
    stage: str, bfloat16: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = batch(tmp_path / "in", bfloat16)
    primecli(*command(stage, bfloat16, bfloat16, tmp_path / "whole"), directory, "--warmup-steps", 4)
    model = bfloat16
    for step, shard in enumerate(sorted(directory.glob("*.parquet")), start=1):
        primecli(*command(stage, model, bfloat16, tmp_path / f"step{step}"), shard, "--warmup-steps", 4)
        model = tmp_path / f"step{step}"
    assert weights(model) == weights(tmp_path / "whole")
    records = [json.loads((path / "trainer/primecli.json").read_text()) for path in (model, tmp_path / "whole")]
    assert [record["step"] for record in records] == [STEPS, STEPS]
    before = load_file(bfloat16 / "model.safetensors")
    master = load_file(model / "trainer" / "master.safetensors")
    moved = {name: (master[name] - tensor.float()).abs().max() for name, tensor in before.items()}
    assert all(0 < change < 1e-4 for change in moved.values()), "1e-6 moves float32 and would vanish in bfloat16"


def test_training_continues_from_float32_master_weights(bfloat16: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", bfloat16)
    first, *_ = sorted(directory.glob("*.parquet"))
    primecli(*command("update-prm", bfloat16, bfloat16, tmp_path / "1"), first)
    master = tmp_path / "1" / "trainer" / "master.safetensors"
    exported = load_file(tmp_path / "1" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    for name, tensor in load_file(master).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.bfloat16(), exported[name])


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
@pytest.mark.parametrize(
    ("tokens", "packing"), [("1", "off"), ("40", "off"), ("1000000", "off"), ("40", "on"), ("1000000", "on")]
)
def test_micro_batches_and_shards_change_no_gradient(
    stage: str,
    tokens: str,
    packing: str,
    tiny: Path,
    other: Path,
    tmp_path: Path,
    primecli: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float64, the gradient of a mini-batch of all rows, however it is split.

    The model rounds to float32 in its norms: where sequences are packed, some of that falls to the other side.
    """
    gradients: list[torch.Tensor] = []
    reference: list[torch.Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def keep(parameters: Any, limit: float) -> torch.Tensor:
        found = list(parameters)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in found]))
        return clip(found, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    monkeypatch.setattr(direct, "from_exported", lambda *_, **__: None)  # so that transformers loads the models
    from_pretrained = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: from_pretrained(*a, **{**k, "dtype": torch.float64})
    )
    rows = read_rows(batch(tmp_path / "many", tiny))
    for name, per_shard, *how in [("whole", None, "1000000", "off"), ("cut", 2 * GROUP, tokens, packing)]:
        directory = write_shards(tmp_path / name, rows, per_shard=per_shard)
        arguments = command(stage, other if stage == "update-prm" else tiny, tiny, tmp_path / f"ckpt-{name}")
        arguments[arguments.index("--mini-batch") + 1] = 1000
        primecli(*arguments, directory, "--micro-batch-tokens", how[0], "--packing", how[1])
        reference, gradients = gradients, []
        if name == "whole":
            whole = reference[0]
    difference = float((reference[0] - whole).abs().max())
    assert float(whole.abs().max()) > 1e-6
    assert difference < (1e-10 if packing == "off" else 1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
def test_a_checkpoint_is_a_model_with_its_tokenizer(stage: str, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    result = primecli(*command(stage, tiny, tiny, tmp_path / "ckpt"), directory)
    assert result.paths == sorted(directory.glob("*.parquet"))
    modes = {path.stat().st_mode for path in (tmp_path / "ckpt").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "ckpt" / "config.json").stat().st_mode}, "others may read what the umask lets them"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ckpt")
    assert model.generation_config.eos_token_id == 256
    assert AutoTokenizer.from_pretrained(tmp_path / "ckpt").decode([10, 20]) == AutoTokenizer.from_pretrained(
        tiny
    ).decode([10, 20])
    found = summary(tmp_path / "ckpt")
    assert (found["stage"], found["status"], found["rows"]) == (stage, "complete", STEPS * GROUP)
    assert found["metrics"]["steps"] == STEPS
    steps = [json.loads(line) for line in (tmp_path / "ckpt/trainer/steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert found["metrics"]["loss"] == pytest.approx(np.mean([step["loss"] for step in steps]))


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
def test_a_rerun_keeps_the_checkpoint_and_another_run_is_refused(
    stage: str, tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = batch(tmp_path / "in", tiny)
    arguments = [*command(stage, tiny, tiny, tmp_path / "ckpt"), directory]
    first = primecli(*arguments)
    stamp = (tmp_path / "ckpt/model.safetensors").stat().st_mtime_ns
    assert primecli(*arguments).paths == first.paths
    assert (tmp_path / "ckpt/model.safetensors").stat().st_mtime_ns == stamp
    refused = primecli(*arguments, "--grad-clip", "3", check=False)
    assert (refused.code, "grad_clip was" in refused.line()) == (1, True)
    primecli(*arguments, "--grad-clip", "3", "--force")
    assert (tmp_path / "ckpt/model.safetensors").stat().st_mtime_ns != stamp
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")) == []


def test_a_checkpoint_behind_a_symbolic_link_is_replaced_where_it_is(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    (tmp_path / "disk").mkdir()
    (tmp_path / "ckpt").symlink_to("disk/1")  # which does not exist yet
    arguments = [*command("update-prm", tiny, tiny, tmp_path / "ckpt"), directory]
    primecli(*arguments)
    first = weights(tmp_path / "disk/1")
    primecli(*arguments)  # which finds it there
    primecli(*arguments, "--lr", "1e-2", "--force")
    assert (tmp_path / "ckpt").readlink() == Path("disk/1")
    assert set(weights(tmp_path / "ckpt")) == set(first)
    assert weights(tmp_path / "ckpt") != first
    assert [path.name for path in (tmp_path / "disk").iterdir() if ".tmp" in path.name] == []


def test_links_in_a_circle_and_mount_points_are_refused_before_any_work(
    tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    result = primecli(*command("update-prm", tiny, tiny, tmp_path / "a"), tmp_path / "nowhere", check=False)
    assert (result.code, "leads in a circle" in result.line()) == (2, True)
    result = primecli(*command("update-prm", tiny, tiny, Path("/proc")), tmp_path / "nowhere", check=False)
    assert (result.code, "is a mount point" in result.line()) == (2, True)


def test_a_directory_that_is_not_a_checkpoint_is_never_overwritten(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    directory = batch(tmp_path / "in", tiny)
    arguments = command("update-prm", tiny, tiny, tmp_path / "precious")
    result = primecli(*arguments, directory, "--force", check=False)
    assert (result.code, "is not a primecli checkpoint" in result.line()) == (2, True)
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_shuffling_depends_on_seed_and_step(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    common = [argument for argument in command("update-prm", tiny, tiny, tmp_path) if argument != "--no-shuffle"]
    results = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        common[common.index("--checkpoint") + 1] = tmp_path / name
        primecli(*common, directory, "--seed", seed)
        results.append(weights(tmp_path / name))
    assert results[0] == results[1] != results[2]


def test_rollouts_of_other_weights_are_refused(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", other)
    strict = ["update-policy", "--policy", tiny, "--checkpoint", tmp_path / "x", directory]
    result = primecli(*strict, "--max-staleness", 100, check=False)
    assert (result.code, "belong neither to --policy" in result.line()) == (3, True)
    own = batch(tmp_path / "own", tiny)
    primecli("update-policy", "--policy", tiny, "--checkpoint", tmp_path / "1", own, "--lr", "1e-2")
    stale = ["update-policy", "--policy", tmp_path / "1", "--checkpoint", tmp_path / "2", own]
    result = primecli(*stale, check=False)
    assert (result.code, "1 update behind --policy" in result.line()) == (3, True)
    assert not (tmp_path / "2").exists()
    primecli(*stale, "--max-staleness", 1)
    assert summary(tmp_path / "2")["metrics"]["staleness"] == 1


def test_recomputed_logprobs_make_the_first_ratio_one(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    common = ["update-policy", "--policy", tiny, directory, "--no-shuffle", "--lr", "1e-3"]
    primecli(*common, "--checkpoint", tmp_path / "one", "--mini-batch", 1000)
    one = summary(tmp_path / "one")["metrics"]
    assert (one["kl"], one["clip_fraction"], one["steps"]) == (0, 0, 1)
    advantages = [value for row in read_rows(directory) for value in row[schema.ADVANTAGES]]
    assert one["loss"] == pytest.approx(-np.mean(advantages), rel=1e-4)  # at ratio 1: the mean over all tokens
    assert one["logprob_gap_max"] > 0.01  # the made-up rollout_logprobs are not the model's
    primecli(*common, "--checkpoint", tmp_path / "two", "--mini-batch", STEPS * GROUP // 2)
    steps = [json.loads(line) for line in (tmp_path / "two/trainer/steps.jsonl").read_text().splitlines()]
    assert abs(steps[0]["kl"]) < 1e-6
    assert abs(steps[1]["kl"]) > 1e-6
    assert summary(tmp_path / "two")["metrics"]["logprob_gap_mean"] == pytest.approx(one["logprob_gap_mean"], rel=1e-5)


def test_the_prm_learns_to_rank_right_above_wrong(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    common = ["update-prm", "--prm", tiny, "--ref", tiny, "--checkpoint", tmp_path / "ckpt", "--lr", "3e-3"]
    primecli(*common, directory, "--epochs", 12, "--mini-batch", 1000, "--beta", 0.5)
    steps = [json.loads(line) for line in (tmp_path / "ckpt/trainer/steps.jsonl").read_text().splitlines()]
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the reference scores everything 0
    assert steps[0]["pair_accuracy"] == 0.5  # all ties
    assert steps[-1]["loss"] < 0.4
    assert steps[-1]["pair_accuracy"] > 0.95


def test_greedy_rollouts_are_refused(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = [{**row, schema.TEMPERATURE: 0.0} for row in read_rows(batch(tmp_path / "in", tiny))]
    directory = write_shards(tmp_path / "greedy", rows)
    result = primecli("update-policy", "--policy", tiny, "--checkpoint", tmp_path / "x", directory, check=False)
    assert (result.code, "sampled greedily" in result.line()) == (3, True)


def test_a_gradient_limit_of_zero_is_no_limit(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    found = []
    for name, limit in [("none", 0), ("huge", 1e9)]:
        primecli(*command("update-prm", tiny, tiny, tmp_path / name), directory, "--grad-clip", limit)
        found.append(weights(tmp_path / name)["model.safetensors"])
    assert found[0] == found[1] != (tiny / "model.safetensors").read_bytes()


def test_a_checkpoint_without_its_master_weights_is_damaged(bfloat16: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", bfloat16)
    primecli(*command("update-prm", bfloat16, bfloat16, tmp_path / "1"), directory)
    (tmp_path / "1/trainer/master.safetensors").unlink()
    result = primecli(*command("update-prm", tmp_path / "1", bfloat16, tmp_path / "2"), directory, check=False)
    assert (result.code, "master.safetensors: cannot be read" in result.line()) == (3, True)


def test_a_float32_model_is_its_own_master(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    """A checkpoint that has a master file too, as one of an earlier version, is continued to the same bits."""
    first, second = sorted(batch(tmp_path / "in", tiny).glob("*.parquet"))[:2]
    primecli(*command("update-prm", tiny, tiny, tmp_path / "1"), first)
    assert set(weights(tmp_path / "1")) == {"model.safetensors", "trainer/optimizer.safetensors"}
    earlier = tmp_path / "earlier"
    shutil.copytree(tmp_path / "1", earlier)
    shutil.copyfile(earlier / "model.safetensors", earlier / "trainer/master.safetensors")
    record = json.loads((earlier / "trainer/primecli.json").read_text())
    assert record.pop("master") == "model"
    (earlier / "trainer/primecli.json").write_text(json.dumps(record))
    for name in ("1", "earlier"):
        primecli(*command("update-prm", tmp_path / name, tiny, tmp_path / f"{name}-next"), second)
    assert weights(tmp_path / "1-next") == weights(tmp_path / "earlier-next")


def test_a_model_whose_files_have_other_names_than_its_parameters_keeps_a_master(tmp_path: Path, primecli: Any) -> None:
    """Here the experts, which transformers stores one by one and computes with as one tensor."""
    make_model(tmp_path / "model")
    config = Qwen3MoeConfig(
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "model")  # type: ignore[no-untyped-call]
    directory = batch(tmp_path / "in", tmp_path / "model")
    for number in (1, 2):
        model = tmp_path / (str(number - 1) if number > 1 else "model")
        primecli(*command("update-policy", model, model, tmp_path / str(number)), directory)
    assert {"model.safetensors", "trainer/master.safetensors"} < set(weights(tmp_path / "2"))


def test_checkpoints_with_equal_weights_and_different_moments_differ(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    still = ["--lr", "0", "--mini-batch", 1000]
    for name, epochs in [("1", 1), ("2", 2)]:
        start = ["update-prm", "--prm", tiny, "--ref", tiny, "--checkpoint", tmp_path / name, directory, *still]
        primecli(*start, "--epochs", epochs)
    onward = ["update-prm", "--ref", tiny, "--checkpoint", tmp_path / "next", directory, *still]
    primecli(*onward, "--prm", tmp_path / "1")
    result = primecli(*onward, "--prm", tmp_path / "2", check=False)
    assert (result.code, "model trainer was" in result.line()) == (1, True)


def test_outcomes_outside_their_range_are_refused(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(2, 2, outcome_reward=7.0))
    result = primecli(*command("update-prm", tiny, tiny, tmp_path / "1"), directory, check=False)
    assert (result.code, "outcome_reward is 7 at row 0; it must be between 0 and 1" in result.line()) == (3, True)


def test_truncated_rollouts_cannot_give_old_logprobs(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = [{**row, schema.TOP_P: 0.9} for row in read_rows(batch(tmp_path / "in", tiny))]
    directory = write_shards(tmp_path / "cut", rows)
    result = primecli(*command("update-policy", tiny, tiny, tmp_path / "1"), directory, check=False)
    assert (result.code, "--old-logprobs rollout needs rollouts sampled with top_p 1" in result.line()) == (3, True)


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
def test_a_full_disk_leaves_no_checkpoint(stage: str, tiny: Path, tmp_path: Path, mounted: Any, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    place = mounted("size=200k")
    result = primecli(*command(stage, tiny, tiny, place / "ckpt"), directory, check=False)
    assert (result.code, "No space left on device" in result.line()) == (1, True)
    assert [path.name for path in place.iterdir() if path.name != ".ckpt.lock"] == []
    subprocess.run(["mount", "-o", "remount,size=9m", str(place)], check=True)
    primecli(*command(stage, tiny, tiny, place / "ckpt"), directory)


def test_a_gradient_that_is_not_finite_leaves_no_checkpoint(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows = read_rows(batch(tmp_path / "in", tiny))
    rows[0][schema.ADVANTAGES][0] = 3e38
    directory = write_shards(tmp_path / "bad", rows)
    result = primecli("update-policy", "--policy", tiny, "--checkpoint", tmp_path / "x", directory, check=False)
    assert (result.code, "the gradient is not finite" in result.line()) == (1, True)
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
@pytest.mark.parametrize("packing", ["off", "on"])
def test_options_that_save_memory_change_no_bit(
    stage: str, packing: str, tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = batch(tmp_path / "in", tiny)
    found = []
    for name, options in [("plain", []), ("saving", SAVING)]:
        arguments = [*command(stage, tiny, tiny, tmp_path / name), directory, "--lr", "1e-3", "--packing", packing]
        result = primecli(*arguments, *options)
        assert ("--offload-optimizer saved nothing" in result.err) == bool(options)
        found.append(weights(tmp_path / name) | {"steps": (tmp_path / name / "trainer/steps.jsonl").read_bytes()})
    assert found[0] == found[1]
    arguments[arguments.index("--checkpoint") + 1] = tmp_path / "plain"
    rerun = primecli(*arguments, *SAVING)
    assert "exists already" in rerun.err


@pytest.mark.parametrize("stage", ["update-prm", "update-policy", "update-critic"])
def test_too_large_a_micro_batch_is_noticed_before_anything_else(
    stage: str, tiny: Path, other: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_rows(batch(tmp_path / "in", tiny))
    for row in rows:
        row |= {schema.VALUES: row[schema.ADVANTAGES], schema.RETURNS: row[schema.ADVANTAGES]}
    long = rows[22]  # in the sixth mini-batch of ten
    long |= {name: 9 * long[name] for name in long if isinstance(long[name], list) and name != schema.PROMPT_IDS}
    asked: list[tuple[list[int], bool, bool]] = []

    def full(model: Any, place: Any, sequences: Any, chosen: scoring.Batch, **named: Any) -> Any:
        gradients = [parameter.grad for parameter in model.parameters()]
        asked.append((chosen.rows, torch.is_grad_enabled(), all(value is not None for value in gradients)))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nand more")

    for name in ("sequence_logprobs", "sequence_values"):
        monkeypatch.setattr(scoring, name, full)
    arguments = command("update-prm" if stage == "update-prm" else "update-policy", tiny, other, tmp_path / "x")
    if stage == "update-critic":
        arguments = [stage, "--critic", tiny, "--mini-batch", GROUP, "--no-shuffle", "--checkpoint", tmp_path / "x"]
    directory = write_shards(tmp_path / "long", rows)
    result = primecli(*arguments, directory, "--preflight", "--micro-batch-tokens", 20, check=False)
    assert asked == [([22], True, True)]
    length = len(long[schema.PROMPT_IDS]) + len(long[schema.RESPONSE_IDS])
    assert result.code == 1
    assert result.line() == (
        f"primecli {stage}: out of memory on the largest micro-batch (1 row, {length} tokens, the longest row {length}"
        "): CUDA out of memory. Tried to allocate 9 GiB. (pass --gradient-checkpointing, or pass --lora-rank)"
    )
    assert not (tmp_path / "x").exists()


def test_running_out_of_memory_later_names_the_remedies(
    tiny: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = batch(tmp_path / "in", tiny)

    def full(*arguments: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(scoring, "sequence_logprobs", full)
    arguments = [*command("update-policy", tiny, tiny, tmp_path / "x"), "--gradient-checkpointing", "--lora-rank", 2]
    result = primecli(*arguments, directory, check=False)
    assert "out of memory: CUDA out of memory. (lower --micro-batch-tokens (it is 16384))" in result.line()


@pytest.mark.parametrize("stage", ["update-prm", "update-policy", "score-prm"])
def test_a_stage_holds_no_model_once_the_next_one_may_begin(
    stage: str, bfloat16: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = batch(tmp_path / "in", bfloat16)
    before = {id(model) for model in models_alive()}
    held: list[int] = []

    def look(*_: Any) -> None:
        held.append(sum(id(model) not in before for model in models_alive()))

    if stage == "score-prm":  # what comes after it waits for the end of its output
        monkeypatch.setattr(Summary, "write", look)
        primecli(stage, "--prm", bfloat16, "--ref", bfloat16, directory)
        held = held[-1:]
    else:
        monkeypatch.setattr(pipe, "emit_all", look)
        primecli(*command(stage, bfloat16, bfloat16, tmp_path / "1"), directory, "--gradient-checkpointing")
    assert held == [0]


def models_alive() -> list[torch.nn.Module]:
    gc.collect()
    return [item for item in gc.get_objects() if type(item) is Qwen2ForCausalLM]
