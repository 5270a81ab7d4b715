"""Updates of architectures that are more than attention and a head: what is trained, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from primecli.models import loading, lora
from primecli.models.body import body_of
from primecli.models.device import resolve_placement
from primecli.models.identity import model_fingerprint
from primecli.models.lora import LoraOptions
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.models.architectures import build, save

CPU = resolve_placement("cpu", "float32")
GROUPS, SIZE = 2, 4
STEP = ["--mini-batch", SIZE, "--no-shuffle", "--lr", "1e-3"]
IDS = torch.arange(1, 30)[None]
# a cap; a scale, a recurrence and experts in one tensor; routers that are linear layers; a layer that is used twice
NAMES = ["Gemma 2", "Granite 4 hybrid", "Llama 4", "Zamba2"]


def batch(directory: Path, policy: Path) -> Path:
    rows = rollouts(GROUPS, SIZE, policy_fingerprint=model_fingerprint(policy))
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        drawn = torch.randn(len(row[schema.RESPONSE_IDS]), generator=generator).tolist()
        row |= {schema.ADVANTAGES: drawn, schema.VALUES: [0.0] * len(drawn), schema.RETURNS: drawn}
    return write_shards(directory, rows)


def weights(directory: Path) -> dict[str, Tensor]:
    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_an_update_writes_is_what_it_trained_under_the_names_of_transformers(
    name: str, tmp_path: Path, primecli: Any
) -> None:
    start = save(name, tmp_path / "start")
    update = ["update-policy", "--policy", start, "--max-staleness", SIZE, *STEP, batch(tmp_path / "in", start)]
    primecli(*update, "--checkpoint", tmp_path / "1", "--old-logprobs", "rollout")
    before, after = weights(start), weights(tmp_path / "1")
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    buffers = {key for key, _ in loading.load_model(start, CPU).named_buffers()}
    still = {key for key, value in after.items() if torch.equal(value, before[key])} - buffers
    assert not still
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    model.save_pretrained(tmp_path / "again")
    again = weights(tmp_path / "again")
    assert all(torch.equal(value, again[key]) for key, value in after.items())
    less = ["--gradient-checkpointing", "--offload-optimizer", "--old-logprobs", "rollout"]
    primecli(*update, "--checkpoint", tmp_path / "2", *less)
    assert all(torch.equal(value, after[key]) for key, value in weights(tmp_path / "2").items())


@pytest.mark.parametrize("name", ["Nemotron-H", "Zamba"])  # a bias stored under another name; decays
@pytest.mark.parametrize("adapters", [[], ["--lora-rank", 3]], ids=["all", "lora"])
def test_what_a_16_bit_model_has_in_float32_stays_in_float32(
    name: str, adapters: list[Any], tmp_path: Path, primecli: Any
) -> None:
    start = save(name, tmp_path / "float32")
    half = AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16)
    with torch.no_grad():
        for key, buffer in half.named_buffers():
            if key.endswith("bias"):
                buffer += 5.001  # as in real models: far from 0, and told apart by less than bfloat16 can say
    half.save_pretrained(start)
    before = weights(start)
    wide = {key for key, value in before.items() if value.dtype == torch.float32}
    assert 0 < len(wide) < len(before)
    update = ["update-policy", "--policy", start, "--max-staleness", SIZE, *STEP, batch(tmp_path / "in", start)]
    primecli(*update, "--checkpoint", tmp_path / "1", "--old-logprobs", "rollout", *adapters)
    after = weights(tmp_path / "1")
    assert {key: value.dtype for key, value in before.items()} == {key: value.dtype for key, value in after.items()}
    biases = {key for key in wide if key.endswith("bias")}
    assert all(torch.equal(after[key], before[key]) for key in biases)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "1", dtype=torch.bfloat16)
    again.save_pretrained(tmp_path / "2")
    assert all(torch.equal(value, after[key]) for key, value in weights(tmp_path / "2").items())


@pytest.mark.parametrize("name", NAMES)
def test_the_export_of_adapters_computes_what_they_do(name: str, tmp_path: Path) -> None:
    model = build(name)
    plain = model(IDS, use_cache=False).logits
    lora.attach(model, LoraOptions(4, 8.0), seed=0)
    assert torch.equal(model(IDS, use_cache=False).logits, plain)
    torch.manual_seed(0)
    for key, parameter in lora.trained(model).items():
        assert "router" not in key
        parameter.data.normal_(std=0.05)
    expected = model(IDS, use_cache=False).logits
    assert float((expected - plain).detach().abs().max()) > 0.5
    lora.merge(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS, use_cache=False).logits, expected, atol=2e-3, rtol=0)
    assert set(weights(tmp_path)) == set(weights(save(name, tmp_path / "plain")))


@pytest.mark.parametrize(
    "name", ["Falcon-H1", "LFM2", "GPT-2", "Llama 4"]
)  # the first computes buffers when it is made
def test_a_critic_has_the_body_of_its_policy(name: str, tmp_path: Path, primecli: Any) -> None:
    start = save(name, tmp_path / "start")
    critic = loading.load_critic(start, CPU)
    policy = loading.load_model(start, CPU)
    with torch.no_grad():
        ours, theirs = (body_of(each)(IDS, use_cache=False).last_hidden_state for each in (critic, policy))
    assert torch.equal(ours, theirs)
    assert not critic.score.weight.any()
    shards = batch(tmp_path / "in", start)
    primecli("update-critic", "--critic", start, "--checkpoint", tmp_path / "1", *STEP, shards)
    primecli("score-values", "--critic", tmp_path / "1", "--out", tmp_path / "scored", shards)
    trained = weights(tmp_path / "1")
    assert trained["score.weight"].any()
    critic, body = loading.load_critic(tmp_path / "1", CPU), AutoModel.from_pretrained(tmp_path / "1")
    assert all(torch.equal(value, body.state_dict()[key]) for key, value in body_of(critic).state_dict().items())
    assert set(trained) - {"score.weight", "score.bias"} == set(weights(start)) - {"lm_head.weight"}
