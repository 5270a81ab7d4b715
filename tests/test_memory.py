"""Less memory, the same numbers: recomputed activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from primecli import models, scoring
from primecli.errors import PrimecliError
from primecli.memory import recompute_activations
from primecli.scoring import Sequences

SEQUENCES = Sequences(
    [np.arange(1, 4), np.arange(5, 14), np.arange(20, 22)],
    [np.arange(30, 60), np.arange(40, 45), np.arange(60, 77)],
)


def forward_and_backward(model: Any) -> tuple[Tensor, int]:
    """All gradients, and the bytes that the forward pass kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    place = models.placement("cpu", "float32")
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs = scoring.sequence_logprobs(model, place, SEQUENCES, scoring.Batch([0, 1, 2])).logprobs
        own = {parameter.data_ptr() for parameter in model.parameters()}
    activations = sum(size for address, size in kept.items() if address not in own)
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(gradients), activations


def test_recomputed_activations_are_not_kept_and_change_no_gradient(tiny: Path) -> None:
    model = models.load_model(tiny, models.placement("cpu", "float32"))
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *given: calls.append(1))
    expected, kept = forward_and_backward(model)
    assert len(calls) == 1
    recompute_activations(model)
    calls.clear()
    found, still_kept = forward_and_backward(model)
    assert len(calls) == 2
    assert torch.equal(found, expected)
    assert float(expected.abs().max()) > 0
    assert still_kept < 0.5 * kept
    calls.clear()
    scoring.score(model, models.placement("cpu", "float32", "off"), SEQUENCES, token_budget=10**6)
    assert len(calls) == 1


def test_dropout_stays_off() -> None:
    """OPT drops within its layers' own forward, by their mode."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=90, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, dropout=0.5,
        attention_dropout=0.5, word_embed_proj_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model: Any = OPTForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    expected, kept = forward_and_backward(model)
    recompute_activations(model)
    before = torch.get_rng_state()
    found, still_kept = forward_and_backward(model)
    assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert still_kept < 0.5 * kept


def test_a_model_without_known_layers_is_refused() -> None:
    with pytest.raises(PrimecliError, match="Linear has no layers that transformers can checkpoint"):
        recompute_activations(torch.nn.Linear(2, 2))
