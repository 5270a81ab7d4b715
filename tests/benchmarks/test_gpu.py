from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.benchmarks import gpu


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
    assert gpu.forward_flops(config, [0], [tokens]) + upper_half + angles == counter.get_total_flops()
    one_by_one = gpu.forward_flops(config, [4], [6]) + gpu.forward_flops(config, [1], [9])
    assert gpu.forward_flops(config, [4, 1], [6, 9]) == one_by_one
    assert gpu.forward_flops(config, [4], [6]) == gpu.forward_flops(config, [0], [10]) - 4 * 2 * 32 * 70


def test_a_known_device_has_a_peak() -> None:
    assert gpu.data_sheet("NVIDIA H200", None) == 989e12
    assert gpu.data_sheet("NVIDIA H200", 5.0) == 5e12
    assert gpu.data_sheet("CPU", None) is None


def test_the_script_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = "gpu.py --device cpu --tiny --rows 4 --tokens 8 --prompt-tokens 4 --mini-batch 4"
    monkeypatch.setattr("sys.argv", options.split())
    gpu.main()
    out = capsys.readouterr().out
    assert out.count("tokens/s") == 2
