"""Options that save memory change no numbers; the preflight tries the largest micro-batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from primecli.errors import PrimecliError
from primecli.models import loading, scoring
from primecli.models.device import resolve_placement
from primecli.models.scoring import Batch
from primecli.shards.rollouts import Sequences
from primecli.training.memory import (
    accumulate_embedding_gradient,
    bytes_to_come,
    largest_micro_batches,
    recompute_activations,
    remedies,
    runs_preflight,
    try_largest_micro_batches,
)
from primecli.training.options import TrainingOptions

SEQUENCES = Sequences(
    [np.arange(1, 4), np.arange(5, 14), np.arange(20, 22)],
    [np.arange(30, 60), np.arange(40, 45), np.arange(60, 77)],
)


def forward_and_backward(model: Any) -> tuple[Tensor, int]:
    """All gradients, and how many bytes the forward pass kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    place = resolve_placement("cpu", "float32")
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs = scoring.sequence_logprobs(model, place, SEQUENCES, Batch([0, 1, 2])).logprobs
        own = {parameter.data_ptr() for parameter in model.parameters()}
    activations = sum(size for address, size in kept.items() if address not in own)
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(gradients), activations


def nodes(tensor: Tensor) -> set[str]:
    """The kinds of operations in the autograd graph of a tensor."""
    found, ahead = set(), [tensor.grad_fn]
    while ahead:
        if (node := ahead.pop()) is not None:
            found.add(node.name())
            ahead.extend(before for before, _ in node.next_functions)
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_embedded_tokens_add_their_gradient_to_the_rows_of_the_embeddings_own(tied: bool) -> None:
    """Over two micro-batches; the padding token, which is among the ids, gets no gradient from its embedding."""
    config = Qwen2Config(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        pad_token_id=41,
    )
    torch.manual_seed(0)
    plain = Qwen2ForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    lean = Qwen2ForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    lean.load_state_dict(plain.state_dict())
    accumulate_embedding_gradient(lean)
    place = resolve_placement("cpu", "float32")
    for model in (plain, lean):
        for rows in ([0, 1], [2]):
            found = scoring.sequence_logprobs(model, place, SEQUENCES, Batch(rows)).logprobs
            assert ("EmbeddingBackward0" in nodes(found)) is (model is plain)
            (found * torch.linspace(-1, 1, len(found))).sum().backward()  # type: ignore[no-untyped-call]
    expected = dict(plain.named_parameters())
    for name, parameter in lean.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-6, msg=name)
    assert tied is bool(lean.get_input_embeddings().weight.grad[41].any())
    with torch.no_grad():
        assert not scoring.sequence_logprobs(lean, place, SEQUENCES, Batch([0])).logprobs.requires_grad


def test_token_ids_may_be_a_keyword_argument() -> None:
    embedding = torch.nn.Embedding(5, 2)
    accumulate_embedding_gradient(SimpleNamespace(get_input_embeddings=lambda: embedding))
    embedding(input=torch.tensor([[1, 1, 3]])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[:, 0].tolist() == [0, 2, 0, 1, 0]


def test_a_frozen_embedding_is_not_touched(tiny: Path) -> None:
    model = loading.load_model(tiny, resolve_placement("cpu", "float32"))
    model.get_input_embeddings().weight.requires_grad_(False)
    accumulate_embedding_gradient(model)
    assert not model.get_input_embeddings()._forward_hooks


def test_recomputed_activations_are_not_kept_and_change_no_gradient(tiny: Path) -> None:
    model = loading.load_model(tiny, resolve_placement("cpu", "float32"))
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
    scoring.score(model, resolve_placement("cpu", "float32", "off"), SEQUENCES, micro_batch_tokens=10**6)
    assert len(calls) == 1


def test_dropout_stays_off() -> None:
    """OPT applies dropout in the forward of its layers, depending on their mode."""
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


def test_a_model_without_layers_to_checkpoint_is_refused() -> None:
    with pytest.raises(PrimecliError, match="Linear has no layers that transformers can checkpoint"):
        recompute_activations(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_trying_leaves_nothing_behind(mini_batches: int, tiny: Path) -> None:
    place = resolve_placement("cpu", "float32")
    model = loading.load_model(tiny, place)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    seen: list[tuple[Batch, bool]] = []

    def forward(batch: Batch) -> Tensor:
        seen.append((batch, all(parameter.grad is not None for parameter in model.parameters())))
        total: Tensor = scoring.sequence_logprobs(model, place, SEQUENCES, batch).logprobs.sum()
        return total

    first, second = Batch([0, 1]), Batch([2])
    plans = [[first, second]] if mini_batches == 1 else [[first], [second]]
    try_largest_micro_batches(plans, SEQUENCES, forward, model.parameters(), str)
    assert seen == [
        (first, mini_batches == 1)
    ]  # with gradients already there if a mini-batch has more than one micro-batch
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_largest_micro_batches_have_the_most_tokens_or_the_longest_rows() -> None:
    """Tokens are those that are computed: padding counts, and a prompt that packed responses share counts once."""
    prompts = [np.arange(90)] * 9 + [np.arange(700), np.arange(750)]
    given = Sequences(prompts, [np.arange(10)] * 9 + [np.arange(100)] * 2)
    many, packed, long, longest = Batch(list(range(9))), Batch(list(range(9)), packed=True), Batch([9]), Batch([10])
    filled = Batch([10, 0])
    assert [batch.tokens(given) for batch in (many, packed, long, filled)] == [900, 180, 800, 1700]
    assert largest_micro_batches([[many], [long]], given) == [many, long]
    assert largest_micro_batches([[packed, long]], given) == [long]
    assert largest_micro_batches([[many, long], [filled], [longest]], given) == [filled]


def test_remedies_name_only_options_that_still_help() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    plain = TrainingOptions(lr=1e-6, micro_batch_tokens=99)
    adapters = replace(plain, lora_rank=8)
    saving = replace(adapters, gradient_checkpointing=True, offload_optimizer=True)
    assert remedies(plain, gpu, rows=3) == (
        "lower --micro-batch-tokens (it is 99), or pass --gradient-checkpointing, or pass --offload-optimizer, or pass "
        "--lora-rank"
    )
    assert remedies(adapters, gpu, rows=0) == "pass --offload-optimizer"
    assert remedies(adapters, cpu, rows=1) == "pass --gradient-checkpointing"
    assert remedies(saving, gpu, rows=1) == "train on shorter responses, or train a smaller model"


def test_preflight_is_the_default_on_a_gpu_only() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for wanted, expected in [(None, [False, True]), (True, [True, True]), (False, [False, False])]:
        options = TrainingOptions(lr=1e-6, preflight=wanted)
        assert [runs_preflight(options, device) for device in (cpu, gpu)] == expected


def test_what_an_update_will_still_take() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3, 5)), torch.nn.Parameter(torch.zeros(7))]
    assert bytes_to_come(weights, offload=False) == 22 * (4 + 8)  # a gradient and two moments, float32
    assert bytes_to_come(weights, offload=True) == 22 * 4
