from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from primecli.models.device import Placement
from primecli.models.loading import load_model
from tests.gpu import models, timing
from tests.gpu.models import forward_flops

CPU = torch.device("cpu")


def test_flops_are_those_that_torch_counts() -> None:
    config = Qwen2Config(
        vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model: Any = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    model.set_attn_implementation("eager")
    tokens = 20
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(tokens)[None], use_cache=False)
    upper_half = 2 * 3 * 32 * tokens**2  # torch counts attention as if it were not causal
    angles = 2 * 4 * tokens  # of the rotary embedding, which are no weights'
    assert forward_flops(config, [0], [tokens]) + upper_half + angles == counter.get_total_flops()
    one_by_one = forward_flops(config, [4], [6]) + forward_flops(config, [1], [9])
    assert forward_flops(config, [4, 1], [6, 9]) == one_by_one
    assert forward_flops(config, [4], [6]) == forward_flops(config, [0], [10]) - 4 * 2 * 32 * 70


def test_a_known_card_has_a_peak() -> None:
    assert timing.data_sheet("NVIDIA H200") == 989e12
    assert timing.data_sheet("Some other card") is None


@pytest.mark.parametrize(("shape", "parameters"), [("0.5B", 0.494e9), ("1.5B", 1.544e9), ("7B", 7.615e9)])
def test_shapes_have_as_many_parameters_as_they_are_named_for(shape: str, parameters: float) -> None:
    model = models.make_model(models.make_config(shape), torch.device("meta"), torch.bfloat16)
    assert model.num_parameters() == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_written_as_transformers_reads_it(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "FILE_BYTES", 20_000)  # several files
    model = models.make_model(models.make_config("0.5B", tiny=True, tie_word_embeddings=tied), CPU, torch.bfloat16)
    models.write_model(model, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path, Placement(CPU, torch.bfloat16)).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_the_tokenizer_knows_every_token_that_the_model_may_sample(tmp_path: Path) -> None:
    config = models.make_config("0.5B", tiny=True)
    config.save_pretrained(tmp_path)
    models.write_tokenizer(tmp_path, config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.eos_token_id == models.EOS
    assert tokenizer.decode(tokenizer("What is 1 + 1?")["input_ids"]) == "What is 1 + 1?"
    assert tokenizer.decode([config.vocab_size - 1]) == f"w{config.vocab_size - 1}"
