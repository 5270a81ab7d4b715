from __future__ import annotations

import pytest
import torch
from torch import Tensor

from primecli.core.logprobs import token_logprobs

TOKENS, VOCABULARY, WIDTH = 7, 11, 5


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight, bias = draw(TOKENS, WIDTH), draw(VOCABULARY, WIDTH), draw(VOCABULARY)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    temperature = torch.rand(TOKENS, generator=generator, dtype=torch.float64).to(dtype) + 0.5
    return hidden, weight, bias, targets, temperature


def with_all_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    log_p = ((hidden @ weight.T + bias) / temperature[:, None]).log_softmax(-1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("kept", [0, VOCABULARY * 3, None])
@pytest.mark.parametrize("chunk", [1, VOCABULARY // 2, VOCABULARY * 2, VOCABULARY * 100])
def test_values_and_gradients_are_those_of_all_logits(chunk: int, kept: int | None) -> None:
    hidden, weight, bias, targets, temperature = inputs()
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    ours = token_logprobs(
        hidden, weight, targets, bias=bias, temperature=temperature, chunk_elements=chunk, kept_elements=kept
    )
    theirs = with_all_logits(hidden, weight, bias, targets, temperature)
    torch.testing.assert_close(tuple(ours), theirs, rtol=0, atol=1e-12)
    mix = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)
    our_gradients = torch.autograd.grad((mix * ours.logprobs).sum() + (mix**2 * ours.entropy).sum(), leaves)
    their_gradients = torch.autograd.grad((mix * theirs[0]).sum() + (mix**2 * theirs[1]).sum(), leaves)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=0, atol=1e-11)


def test_logits_are_kept_for_one_backward_pass_and_made_again_for_another() -> None:
    hidden, weight, _, targets, _ = inputs()
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    total = token_logprobs(hidden, weight, targets).logprobs.sum()
    first, second = (torch.autograd.grad(total, leaves, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_no_tokens_have_no_gradient() -> None:
    hidden, weight, _, targets, _ = inputs()
    weight.requires_grad_()
    (found,) = torch.autograd.grad(token_logprobs(hidden[:0], weight, targets[:0]).logprobs.sum(), [weight])
    assert not found.any()


def test_without_entropy_the_rest_is_the_same() -> None:
    hidden, weight, bias, targets, temperature = inputs()
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    plain = token_logprobs(hidden, weight, targets, bias=bias, temperature=temperature, with_entropy=False)
    both = token_logprobs(hidden, weight, targets, bias=bias, temperature=temperature)
    assert plain.entropy.numel() == 0
    torch.testing.assert_close(plain.logprobs, both.logprobs, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad(found.logprobs.sum(), leaves) for found in (plain, both))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    (alone,) = torch.autograd.grad(token_logprobs(hidden, weight, targets).entropy.sum(), [hidden])
    (reference,) = torch.autograd.grad(
        with_all_logits(hidden, weight, 0 * bias, targets, torch.ones(TOKENS).double())[1].sum(), [hidden]
    )
    torch.testing.assert_close(alone, reference, rtol=0, atol=1e-11)


def test_large_logits_overflow_nothing() -> None:
    hidden, weight = torch.full((1, 1), 1e4), torch.tensor([[1.0], [0.5], [-1.0]])
    ours = token_logprobs(hidden, weight, torch.tensor([1]))
    assert (float(ours.logprobs), float(ours.entropy)) == (-5000.0, 0.0)


def test_bfloat16_states_give_float32_logprobs() -> None:
    hidden, weight, _, targets, _ = inputs(torch.bfloat16)
    ours = token_logprobs(hidden, weight.float(), targets)
    assert ours.logprobs.dtype == torch.float32
    exact = (hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(ours.logprobs, exact)


@pytest.mark.parametrize("chunk", [VOCABULARY // 2, VOCABULARY * 2, VOCABULARY * 100])
def test_gradients_of_bfloat16_states_are_summed_in_float32(chunk: int) -> None:
    hidden, weight, _, targets, _ = inputs(torch.bfloat16)
    hidden, weight = hidden.repeat(50, 1), weight.float()
    targets = targets.repeat(50)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    ours = torch.autograd.grad(token_logprobs(hidden, weight, targets, chunk_elements=chunk).logprobs.sum(), leaves)
    assert [gradient.dtype for gradient in ours] == [torch.bfloat16, torch.float32]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = torch.autograd.grad(token_logprobs(doubles[0], doubles[1], targets).logprobs.sum(), doubles)
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_no_tensor_of_tokens_by_vocabulary_is_made() -> None:
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(1000, 4)
    with Watch():
        token_logprobs(
            hidden, weight, torch.zeros(64, dtype=torch.int64), chunk_elements=2000, kept_elements=4000
        ).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert largest <= weight.numel() <= 64 * 1000 / 16
