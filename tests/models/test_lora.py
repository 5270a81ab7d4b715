"""LoRA: what is trained, what is exported, and that training resumes to the bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from primecli.models import checkpoints, loading, lora, saving
from primecli.models.device import resolve_placement
from primecli.models.identity import model_fingerprint
from primecli.models.lora import LoraOptions
from primecli.setup.tiny_model import make_model
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import summary

STEPS, GROUP, RANK, ALPHA = 4, 4, 3, 12.0
CPU = resolve_placement("cpu", "float32")
IDS = torch.arange(1, 40)[None]
LORA = ["--lora-rank", RANK, "--lora-alpha", ALPHA]


def batch(directory: Path, policy: Path) -> Path:
    """One shard per step, with advantages and values."""
    rows = rollouts(STEPS, GROUP, policy_fingerprint=model_fingerprint(policy))
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        drawn = torch.randn(len(row[schema.RESPONSE_IDS]), generator=generator).tolist()
        row |= {schema.ADVANTAGES: drawn, schema.VALUES: [0.0] * len(drawn), schema.RETURNS: drawn}
    return write_shards(directory, rows, per_shard=GROUP)


def command(stage: str, model: Path, ref: Path, checkpoint: Path) -> list[Any]:
    common = [stage, "--checkpoint", checkpoint, "--mini-batch", GROUP, "--no-shuffle", "--lr", "1e-3", *LORA]
    return {
        "update-prm": [*common, "--prm", model, "--ref", ref],
        "update-policy": [*common, "--policy", model, "--old-logprobs", "rollout", "--max-staleness", STEPS],
        "update-critic": [*common, "--critic", model],
    }[stage]


def files(checkpoint: Path) -> dict[str, bytes]:
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in sorted(checkpoint.rglob("*.safetensors"))}


def merged(checkpoint: Path) -> dict[str, Tensor]:
    """base + alpha / rank * B A in float64, from the stored tensors."""
    base = {name: value.double() for name, value in load_file(checkpoint / "trainer/base.safetensors").items()}
    trained = load_file(checkpoint / "trainer/master.safetensors")
    for name, value in trained.items():
        assert value.dtype == torch.float32
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix("lora_A.weight")
            base[f"{stem}weight"] += ALPHA / RANK * (trained[f"{stem}lora_B.weight"].double() @ value.double())
        elif ".lora_" not in name:
            base[name] = value.double()
    return base


def test_merged_weights_act_as_the_adapters_did(tiny: Path) -> None:
    model = loading.load_model(tiny, CPU, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = list(before)
    plain = model(IDS).logits
    lora.attach(model, LoraOptions(RANK, ALPHA), seed=0)
    assert torch.equal(model(IDS).logits, plain)  # B is 0
    trained = lora.trained(model)
    assert not any(module.training for module in model.modules())
    for value in trained.values():
        value.data.normal_()
    expected = model(IDS).logits
    lora.merge(model)
    assert float((expected - plain).detach().abs().max()) > 1
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-10, rtol=1e-10)
    assert list(model.state_dict()) == names
    for name, value in model.state_dict().items():
        stem = name.removesuffix("weight")
        change = torch.zeros_like(value)
        if f"{stem}lora_A.weight" in trained:
            change = ALPHA / RANK * (trained[f"{stem}lora_B.weight"] @ trained[f"{stem}lora_A.weight"])
        torch.testing.assert_close(value, before[name] + change, atol=1e-12, rtol=0)


def test_all_linear_layers_but_the_head_are_meant(tmp_path: Path) -> None:
    model = loading.load_model(make_model(tmp_path / "untied", tied=False), CPU)
    lora.attach(model, LoraOptions(RANK, ALPHA), seed=0)
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in lora.trained(model)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(lora.trained(model)) == 2 * 2 * len(layers)
    drawn = lora.trained(model)["model.layers.0.mlp.up_proj.lora_A.weight"]
    assert drawn.shape == (RANK, 32)
    assert 0.5 * 32**-0.5 < float(drawn.detach().abs().max()) <= 32**-0.5


SMALL = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Ernie4_5_Moe", {**SMALL, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16}),
        ("Mixtral", {**SMALL, "num_local_experts": 4}),
        ("Qwen2Moe", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_adapters_in_a_mixture_of_experts_are_beside_its_linear_layers(name: str, settings: dict[str, Any]) -> None:
    """The experts of a layer are one tensor, and a dense layer or a shared expert beside them is not among them."""
    import transformers

    torch.manual_seed(0)
    model: Any = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).eval()
    names = list(model.state_dict())
    inside = set(model.base_model.modules())
    linear = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module in inside
    }
    lora.attach(model, LoraOptions(RANK, ALPHA), seed=0)
    assert lora.has_adapters(model)
    assert {name.partition(".lora_")[0] for name in lora.trained(model)} == linear
    for value in lora.trained(model).values():
        value.data.normal_()
    expected = model(IDS % 40).logits
    lora.merge(model)
    assert not lora.has_adapters(model)
    torch.testing.assert_close(model(IDS % 40).logits, expected, atol=1e-4, rtol=1e-4)
    assert list(model.state_dict()) == names


def test_a_layer_whose_weight_kernels_take_past_it_has_no_adapter() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, state_size=8)
    model: Any = MambaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    lora.attach(model, LoraOptions(RANK, ALPHA), seed=0)
    found = {name.partition(".lora_")[0].rpartition(".")[2] for name in lora.trained(model)}
    assert found == {"in_proj"}


@pytest.mark.parametrize("stage", ["update-prm", "update-policy", "update-critic"])
def test_processes_of_a_step_are_one_of_all(stage: str, tmp_path: Path, primecli: Any) -> None:
    start = make_model(tmp_path / "bf16", dtype="bfloat16")
    directory = batch(tmp_path / "in", start)
    primecli(*command(stage, start, start, tmp_path / "whole"), directory)
    model = start
    for step, shard in enumerate(sorted(directory.glob("*.parquet")), start=1):
        primecli(*command(stage, model, start, tmp_path / f"step{step}"), shard)
        model = tmp_path / f"step{step}"
    assert files(model) == files(tmp_path / "whole")
    assert (model / "trainer/base.safetensors").samefile(tmp_path / "step1/trainer/base.safetensors")
    found = summary(model)["metrics"]
    master = load_file(model / "trainer/master.safetensors")
    assert found["trained_parameters"] == sum(value.numel() for value in master.values()) < 10_000
    assert set(load_file(model / "trainer/optimizer.safetensors")) == {
        f"{name}.{moment}" for name in master for moment in ("exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_is_the_merged_model(stage: str, dtype: str, tmp_path: Path, primecli: Any) -> None:
    start = make_model(tmp_path / "start", dtype=dtype)
    primecli(*command(stage, start, start, tmp_path / "1"), batch(tmp_path / "in", start))
    before, after = (load_file(path / "model.safetensors") for path in (start, tmp_path / "1"))
    base = load_file(tmp_path / "1/trainer/base.safetensors")
    expected = merged(tmp_path / "1")
    assert list(before) == list(after)
    for name, value in after.items():
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(base[name].float(), before[name].float())
        if "proj.weight" in name:
            assert not torch.equal(value, before[name])
            rounding = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=rounding)
        else:
            assert torch.equal(value, before[name])
    AutoModelForCausalLM.from_pretrained(tmp_path / "1")


def test_another_stage_starts_from_the_merged_float32_numbers(tmp_path: Path, primecli: Any) -> None:
    start = make_model(tmp_path / "start", dtype="bfloat16")
    directory = batch(tmp_path / "in", start)
    primecli(*command("update-policy", start, start, tmp_path / "policy"), directory)
    expected = merged(tmp_path / "policy")
    still = ["--ref", start, "--prm", tmp_path / "policy", "--lr", 0, directory]
    primecli("update-prm", "--checkpoint", tmp_path / "full", *still)
    primecli("update-prm", "--checkpoint", tmp_path / "lora", *still, *LORA)
    full = load_file(tmp_path / "full/trainer/master.safetensors")
    base = load_file(tmp_path / "lora/trainer/base.safetensors")
    rounded = load_file(tmp_path / "policy/model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(full[name].double(), value, atol=1e-7, rtol=1e-6)
        assert torch.equal(base[name].float(), full[name])
    name = "model.layers.0.mlp.up_proj.weight"
    assert float((rounded[name].double() - expected[name]).abs().max()) > 1e-5
    assert model_fingerprint(tmp_path / "lora") == model_fingerprint(tmp_path / "full")


def test_a_critics_head_is_trained_whole(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    primecli(*command("update-critic", tiny, tiny, tmp_path / "1"), directory)
    master = load_file(tmp_path / "1/trainer/master.safetensors")
    export = load_file(tmp_path / "1/model.safetensors")
    assert torch.equal(master["score.weight"], export["score.weight"])
    assert float(export["score.weight"].abs().min()) > 0
    assert any(float(value.abs().max()) > 0 for name, value in master.items() if "lora_B" in name)


def test_a_base_held_in_bfloat16_gives_the_same_bits(
    tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = make_model(tmp_path / "bf16", dtype="bfloat16")
    directory = batch(tmp_path / "in", start)
    held: list[bool] = []
    hold = lora.hold_compactly

    def watched(model: Any) -> None:
        hold(model)
        frozen = lora.frozen(model).items()
        held.extend((value.dtype == torch.bfloat16) == ("proj." in name) for name, value in frozen)

    monkeypatch.setattr(lora, "hold_compactly", watched)
    primecli(*command("update-policy", start, start, tmp_path / "compact"), directory, "--dtype", "bfloat16")
    assert held
    assert all(held)
    monkeypatch.setattr(lora, "hold_compactly", lambda model: None)
    primecli(*command("update-policy", start, start, tmp_path / "wide"), directory, "--dtype", "bfloat16")
    assert files(tmp_path / "compact") == files(tmp_path / "wide")


def test_adapters_are_not_changed_on_the_way(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    primecli(*command("update-prm", tiny, tiny, tmp_path / "lora"), directory)
    full = command("update-prm", tiny, tiny, tmp_path / "full")
    primecli(*full[: full.index("--lora-rank")], "--prm", tiny, "--ref", tiny, directory)
    was = f"was trained with --lora-rank {RANK} --lora-alpha 12, but this run has"
    for start, options, message in [
        ("lora", ["--lora-rank", 8], f"{was} --lora-rank 8 --lora-alpha 32 (give the same"),
        ("lora", ["--lora-rank", RANK], f"{was} --lora-rank {RANK} --lora-alpha 32"),
        ("lora", [*LORA, "--lora-targets", "q_proj"], "--lora-targets q_proj"),
        ("lora", [], f"{was} no --lora-rank"),
        ("full", LORA, "was trained in all its parameters, without --lora-rank, but this run has --lora-rank 3"),
    ]:
        arguments = ["update-prm", "--ref", tiny, "--prm", tmp_path / start, "--checkpoint", tmp_path / "2", directory]
        result = primecli(*arguments, *options, check=False)
        assert (result.code, message in result.line()) == (2, True), result.err
        assert not (tmp_path / "2").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora-rank", 0], "--lora-rank"),
        (["--lora-rank", 2, "--lora-alpha", 0], "0 is not a positive number"),
        (["--lora-rank", 2, "--lora-alpha", "nan"], "nan is not a positive number"),
        (["--lora-targets", "q_proj"], "--lora-targets needs --lora-rank"),
        (["--lora-alpha", 4], "--lora-alpha needs --lora-rank"),
        (["--lora-rank", 2, "--lora-targets", " ,"], "names no layer"),
        (["--lora-rank", 2, "--lora-targets", "q_proj,query"], "--lora-targets query: the model has no such linear"),
    ],
)
def test_options_that_do_not_fit(options: list[Any], message: str, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    arguments = ["update-prm", "--prm", tiny, "--ref", tiny, "--checkpoint", tmp_path / "1", directory]
    result = primecli(*arguments, *options, check=False)
    assert (result.code, message in result.line()) == (2, True), result.err


def test_without_peft_one_line_says_what_to_install(
    tiny: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    result = primecli(*command("update-prm", tiny, tiny, tmp_path / "1"), tmp_path, check=False)
    assert (result.code, "(pip install peft)" in result.line()) == (1, True)


def test_parameters_that_a_model_holds_still_are_no_adapters_base(tiny: Path, tmp_path: Path) -> None:
    """Like the router biases of some mixtures of experts."""
    model = loading.load_model(tiny, CPU)
    model.model.norm.weight.requires_grad_(False).fill_(1.25)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    saving.save(checkpoint, model, {}, source=tiny, same_base=False, record={"step": 1}, lineage=["before"], steps=[])
    assert not (checkpoint / "trainer" / checkpoints.BASE).exists()
    again = loading.load_model(checkpoint, CPU, to_train=True)
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)
