"""AdamW equals its formula in float64 and torch's plain kernel, and continues exactly from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    GPT2Config,
    MambaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.trainer import Trainer

from primecli.errors import InputError
from primecli.models import lora
from primecli.models.lora import LoraOptions
from primecli.training.optimizer import BETAS, EPSILON, AdamW, biases_and_norms

SHAPES = {"matrix": (17, 5), "vector": (33,), "frozen": (2, 2)}
DECAY = 0.01


def gradients(step: int) -> dict[str, Tensor]:
    """Gradients of very different sizes, like real ones."""
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-6, 2, shape, generator=generator)
        for name, shape in SHAPES.items()
        if name != "frozen"
    }


def parameters() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(99)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def take_steps(optimizer: AdamW, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        for name, gradient in gradients(step).items():
            optimizer.parameters[name].grad = gradient
        optimizer.step(lr=1e-3 * (step + 1))


def formula(
    start: dict[str, Tensor],
    steps: int,
    betas: tuple[float, float] = BETAS,
    epsilon: float = EPSILON,
    undecayed: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """AdamW as in the paper, in float64."""
    found = {name: value.detach().double() for name, value in start.items()}
    first = {name: torch.zeros_like(value) for name, value in found.items()}
    second = {name: torch.zeros_like(value) for name, value in found.items()}
    for step in range(steps):
        lr = 1e-3 * (step + 1)
        for name, gradient in gradients(step).items():
            g = gradient.double()
            first[name] = betas[0] * first[name] + (1 - betas[0]) * g
            second[name] = betas[1] * second[name] + (1 - betas[1]) * g**2
            mean = first[name] / (1 - betas[0] ** (step + 1))
            root = (second[name] / (1 - betas[1] ** (step + 1))).sqrt()
            decay = 0.0 if name in undecayed else DECAY
            found[name] = found[name] * (1 - lr * decay) - lr * mean / (root + epsilon)
    return found


def test_steps_follow_the_formula() -> None:
    optimizer = AdamW(parameters(), weight_decay=DECAY)
    take_steps(optimizer, range(12))
    expected = formula(dict(parameters()), 12)
    for name, parameter in optimizer.parameters.items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], atol=2e-6, rtol=2e-6)
        moved = (parameter.detach() - parameters()[name].detach()).abs().max()
        assert (moved > 1e-2) == (name != "frozen")


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(
    ("betas", "epsilon", "undecayed"),
    [((0.9, 0.95), EPSILON, ()), ((0.5, 0.999), EPSILON, ()), (BETAS, 1e-2, ()), (BETAS, EPSILON, ("vector",))],
)
def test_steps_follow_the_formula_with_other_settings(
    offload: bool, betas: tuple[float, float], epsilon: float, undecayed: tuple[str, ...]
) -> None:
    optimizer = AdamW(parameters(), weight_decay=DECAY, betas=betas, eps=epsilon, undecayed=undecayed, offload=offload)
    take_steps(optimizer, range(12))
    expected = formula(dict(parameters()), 12, betas, epsilon, undecayed)
    usual = formula(dict(parameters()), 12)
    for name, parameter in optimizer.parameters.items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], atol=2e-6, rtol=2e-6)
    assert max(float((expected[name] - usual[name]).abs().max()) for name in expected) > 1e-4


MODELS: list[tuple[PreTrainedConfig, bool]] = [
    (Qwen2Config(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=2), False),
    (Qwen3Config(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=4), True),
    (GPT2Config(n_embd=8, n_head=2, n_layer=1, bos_token_id=0, eos_token_id=0), False),
    (MambaConfig(hidden_size=8, state_size=4), False),
]


@pytest.mark.parametrize(("config", "is_critic"), MODELS)
def test_biases_and_norms_are_those_of_transformers(config: PreTrainedConfig, is_critic: bool) -> None:
    config.update({"vocab_size": 20, "num_hidden_layers": 1, "num_labels": 1})
    kind = AutoModelForTokenClassification if is_critic else AutoModelForCausalLM
    model = kind.from_config(config)  # type: ignore[no-untyped-call]
    names = {name for name, _ in model.named_parameters()}
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    assert biases_and_norms(model) == names - decayed
    assert 0 < len(names - decayed) < len(names)


def test_adapters_decay_and_the_names_are_those_in_a_checkpoint() -> None:
    config = MODELS[0][0]
    config.update({"vocab_size": 20, "num_hidden_layers": 1})
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    plain = biases_and_norms(model)
    lora.attach(model, LoraOptions(2, 4.0), seed=0)
    assert biases_and_norms(model) == plain
    assert not plain & set(lora.trained(model))


def test_the_fused_kernel_rounds_as_little_as_the_plain_one() -> None:
    """Both differ from the formula only by rounding."""
    optimizer = AdamW(parameters(), weight_decay=DECAY)
    take_steps(optimizer, range(12))
    plain = parameters()
    reference = torch.optim.AdamW(plain.values(), betas=BETAS, weight_decay=DECAY, foreach=False, fused=False)
    for step in range(12):
        for name, gradient in gradients(step).items():
            plain[name].grad = gradient
        reference.param_groups[0]["lr"] = 1e-3 * (step + 1)
        reference.step()
    for name, parameter in optimizer.parameters.items():
        torch.testing.assert_close(parameter, plain[name], atol=1e-6, rtol=1e-6)


def test_offloaded_moments_give_the_same_bits() -> None:
    """The kernel sees copies of the moments, on a CPU too, and what it computes must be copied back."""
    optimizers = [AdamW(parameters(), weight_decay=DECAY, offload=offload) for offload in (False, True)]
    homes = [{name: value.data_ptr() for name, value in optimizer.tensors().items()} for optimizer in optimizers]
    for optimizer, home in zip(optimizers, homes, strict=True):
        take_steps(optimizer, range(8))
        assert {name: value.data_ptr() for name, value in optimizer.tensors().items()} == home
    plain, offloaded = optimizers
    assert all(torch.equal(offloaded.parameters[name], value) for name, value in plain.parameters.items())
    assert all(torch.equal(offloaded.tensors()[name], value) for name, value in plain.tensors().items())


@pytest.mark.parametrize("offload", [False, True])
def test_loaded_moments_continue_to_the_bit(offload: bool, tmp_path: Path) -> None:
    whole = AdamW(parameters(), weight_decay=DECAY)
    take_steps(whole, range(10))
    first = AdamW(parameters(), weight_decay=DECAY)
    take_steps(first, range(6))
    save_file(first.tensors(), tmp_path / "moments")
    second = AdamW(first.parameters, weight_decay=DECAY, steps=6, offload=offload)
    second.load(tmp_path / "moments")
    take_steps(second, range(6, 10))
    assert all(torch.equal(second.parameters[name], value) for name, value in whole.parameters.items())
    assert all(torch.equal(second.tensors()[name], value) for name, value in whole.tensors().items())


@pytest.mark.parametrize("offload", [False, True])
def test_moments_that_come_from_a_file_are_that_file_until_a_step(offload: bool, tmp_path: Path) -> None:
    """They are mapped, and the file is not written to."""
    first = AdamW(parameters(), weight_decay=DECAY)
    take_steps(first, range(3))
    save_file(first.tensors(), tmp_path / "moments")
    before = (tmp_path / "moments").read_bytes()
    zeros = AdamW(parameters(), weight_decay=DECAY, steps=3)
    mapped = AdamW(parameters(), weight_decay=DECAY, steps=3, offload=offload, resumes=True)
    for optimizer in (zeros, mapped):
        optimizer.load(tmp_path / "moments")
        take_steps(optimizer, range(3, 6))
    assert all(torch.equal(mapped.tensors()[name], value) for name, value in zeros.tensors().items())
    assert all(torch.equal(mapped.parameters[name], value) for name, value in zeros.parameters.items())
    assert (tmp_path / "moments").read_bytes() == before


def take_some_gradients(optimizer: AdamW, steps: range) -> None:
    """As `take_steps`; `vector` has a gradient in every third step only."""
    for step in steps:
        optimizer.zero_grad()
        for name, gradient in gradients(step).items():
            if name != "vector" or step % 3 == 1:
                optimizer.parameters[name].grad = gradient
        optimizer.step(lr=1e-3 * (step + 1))


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("cut", range(1, 10))
def test_a_parameter_that_had_no_gradient_for_some_steps_continues_to_the_bit(
    offload: bool, cut: int, tmp_path: Path
) -> None:
    whole = AdamW(parameters(), weight_decay=DECAY)
    take_some_gradients(whole, range(10))
    first = AdamW(parameters(), weight_decay=DECAY, offload=offload)
    take_some_gradients(first, range(cut))
    save_file(first.tensors(), tmp_path / "moments")
    second = AdamW(first.parameters, weight_decay=DECAY, steps=cut, own_steps=first.own_steps(cut), offload=offload)
    second.load(tmp_path / "moments")
    take_some_gradients(second, range(cut, 10))
    assert all(torch.equal(second.parameters[name], value) for name, value in whole.parameters.items())
    assert whole.own_steps(10) == second.own_steps(10) == {"vector": 3, "frozen": 0}


def test_the_steps_of_a_parameter_are_those_of_torch() -> None:
    """Torch counts a parameter's own steps for the bias correction, here and in the plain kernel."""
    optimizer = AdamW(parameters(), weight_decay=DECAY)
    take_some_gradients(optimizer, range(10))
    plain = parameters()
    reference = torch.optim.AdamW(plain.values(), betas=BETAS, weight_decay=DECAY, foreach=False, fused=False)
    for step in range(10):
        reference.zero_grad()
        for name, gradient in gradients(step).items():
            if name != "vector" or step % 3 == 1:
                plain[name].grad = gradient
        reference.param_groups[0]["lr"] = 1e-3 * (step + 1)
        reference.step()
    torch.testing.assert_close(optimizer.parameters["vector"], plain["vector"], atol=1e-6, rtol=1e-6)


def test_moments_of_the_plain_kernel_can_be_loaded(tmp_path: Path) -> None:
    """Checkpoints from before the fused kernel have these."""
    names = [name for name in SHAPES if name != "frozen"]
    plain = {name: parameters()[name] for name in names}
    reference = torch.optim.AdamW(plain.values(), betas=BETAS, weight_decay=DECAY)
    for name, gradient in gradients(0).items():
        plain[name].grad = gradient
    reference.param_groups[0]["lr"] = 1e-3
    reference.step()
    moments = ("exp_avg", "exp_avg_sq")
    stored = {f"{name}.{moment}": reference.state[plain[name]][moment] for name in names for moment in moments}
    save_file(stored, tmp_path / "moments")
    onward = AdamW(plain, weight_decay=DECAY, steps=1)
    onward.load(tmp_path / "moments")
    take_steps(onward, range(1, 12))
    expected = formula(dict(parameters()), 12)
    for name in names:
        torch.testing.assert_close(plain[name].detach().double(), expected[name], atol=2e-6, rtol=2e-6)


def test_moments_of_another_model_are_refused(tmp_path: Path) -> None:
    moments = AdamW(parameters(), weight_decay=DECAY).tensors()
    save_file({**moments, "vector.exp_avg": torch.zeros(5)}, tmp_path / "moments")
    with pytest.raises(InputError, match="does not fit the model at vector"):
        AdamW(parameters(), weight_decay=DECAY).load(tmp_path / "moments")
