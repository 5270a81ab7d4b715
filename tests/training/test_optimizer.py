"""AdamW equals its formula in float64 and torch's plain kernel, and continues exactly from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from primecli.errors import InputError
from primecli.training.optimizer import BETAS, AdamW

SHAPES = {"matrix": (17, 5), "vector": (33,), "frozen": (2, 2)}
DECAY, EPSILON = 0.01, 1e-8


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


def formula(start: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    """AdamW as in the paper, in float64."""
    found = {name: value.detach().double() for name, value in start.items()}
    first = {name: torch.zeros_like(value) for name, value in found.items()}
    second = {name: torch.zeros_like(value) for name, value in found.items()}
    for step in range(steps):
        lr = 1e-3 * (step + 1)
        for name, gradient in gradients(step).items():
            g = gradient.double()
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * g
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * g**2
            mean = first[name] / (1 - BETAS[0] ** (step + 1))
            root = (second[name] / (1 - BETAS[1] ** (step + 1))).sqrt()
            found[name] = found[name] * (1 - lr * DECAY) - lr * mean / (root + EPSILON)
    return found


def test_steps_follow_the_formula() -> None:
    optimizer = AdamW(parameters(), weight_decay=DECAY)
    take_steps(optimizer, range(12))
    expected = formula(dict(parameters()), 12)
    for name, parameter in optimizer.parameters.items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], atol=2e-6, rtol=2e-6)
        moved = (parameter.detach() - parameters()[name].detach()).abs().max()
        assert (moved > 1e-2) == (name != "frozen")


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
