from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models.architectures import ARCHITECTURES, BY_NAME, build, save
from tests.models.configs.common import EOS, VOCABULARY


def test_there_is_one_of_each() -> None:
    assert len(BY_NAME) == len({one.type for one in ARCHITECTURES}) == len(ARCHITECTURES) >= 45


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Qwen3.5", "Mamba 2", "Qwen3-MoE"])
def test_a_seed_gives_the_same_model_and_a_checkpoint_holds_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, other = build(name), build(name, seed=1)
    assert torch.equal(torch.rand(1), expected), "a build must not touch the random numbers of its caller"
    found = AutoModelForCausalLM.from_pretrained(save(name, tmp_path))
    text = AutoTokenizer.from_pretrained(tmp_path)("1+1=2 and so on.", return_tensors="pt")
    with torch.no_grad():
        logits, again, others = (model(**text).logits for model in (first, found, other))
    assert torch.equal(logits, again)
    assert not torch.allclose(logits, others, atol=0.1)
    assert logits.shape[-1] == VOCABULARY
    assert logits.std() > 0.8
    assert found.generation_config.eos_token_id == EOS


def test_settings_replace_those_of_the_architecture() -> None:
    model = build("Llama", tie_word_embeddings=True, num_hidden_layers=3)
    assert len(model.model.layers) == 3
    assert model.lm_head.weight is model.model.embed_tokens.weight
