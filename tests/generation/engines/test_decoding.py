from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from primecli.generation.engines.decoding import Decoding, avoid_key_copies
from primecli.generation.engines.probe import plan_decoding
from primecli.generation.engines.roomy_layer import LEAST_ROOM
from primecli.models.attention import DECODING
from primecli.models.device import resolve_placement
from tests.models.architectures import build

PROMPTS = [[12], [5, 6, 7, 8, 9, 10, 11], [13, 14, 15]]


def make_model(**config: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=50, **{**shape, "num_key_value_heads": 2, **config})).eval()  # type: ignore[no-untyped-call]


def test_only_a_model_that_shares_keys_gets_this_attention() -> None:
    shared, own = make_model(), make_model(num_key_value_heads=4)
    for model in (shared, own):
        avoid_key_copies(model)
    assert [model.config._attn_implementation for model in (shared, own)] == [DECODING, "sdpa"]
    eager = make_model(attn_implementation="eager")
    avoid_key_copies(eager)
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "config",
    [{}, {"num_key_value_heads": 4}, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}],
    ids=["shared keys", "own keys", "a window"],
)
def test_logits_are_those_of_the_whole_sequence(config: dict[str, Any]) -> None:
    model = make_model(**config)
    avoid_key_copies(model)
    follow(model)


@pytest.mark.parametrize("name", ["RecurrentGemma", "Falcon-H1"])
def test_logits_of_recurrent_models_are_those_of_the_whole_sequence(name: str) -> None:
    follow(build(name), steps=12, tolerance=1e-4)


def follow(model: Any, *, steps: int = LEAST_ROOM + 10, tolerance: float = 2e-5) -> None:
    """Decodes a batch with the plan of the model, and compares each step with a forward pass of each whole sequence."""
    placement = resolve_placement("cpu", "float32")
    plan = plan_decoding(model, placement)
    samples = [2, 1, 2]
    rows = [list(prompt) for prompt, number in zip(PROMPTS, samples, strict=True) for _ in range(number)]
    with torch.inference_mode():
        state = Decoding(model, placement, plan, PROMPTS, samples)
        for step in range(steps):
            expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
            torch.testing.assert_close(state.logits, expected, atol=tolerance, rtol=1e-4)
            tokens = torch.arange(len(rows)) * 3 + step % 7
            if step in (6, 10):
                rows, tokens = rows[1:], tokens[1:]
                state.keep(torch.arange(1, len(rows) + 1))
            state.advance(tokens)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.append(token)
