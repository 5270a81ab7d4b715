from __future__ import annotations

from typing import Any

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


def capped(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, temperature: Tensor, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    logits = scale * (hidden @ weight.T + bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_p = (logits / temperature[:, None]).log_softmax(-1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("kept", [0, VOCABULARY * 3, None])
@pytest.mark.parametrize("chunk", [1, VOCABULARY // 2, VOCABULARY * 2, VOCABULARY * 100])
@pytest.mark.parametrize(("scale", "cap"), [(0.3, None), (1.0, 2.0), (1.7, 2.0), (0.0625, 30.0)])
def test_a_scale_and_a_cap_come_before_the_temperature(
    scale: float, cap: float | None, chunk: int, kept: int | None
) -> None:
    tensors = inputs()
    leaves = [tensor.requires_grad_() for tensor in tensors[:3]]
    hidden, weight, bias, targets, temperature = tensors
    ours = token_logprobs(
        hidden, weight, targets, bias=bias, scale=scale, cap=cap, temperature=temperature, chunk_elements=chunk,
        kept_elements=kept,
    )  # fmt: skip
    theirs = capped(*tensors, scale, cap)
    torch.testing.assert_close(tuple(ours), theirs, rtol=0, atol=1e-12)
    mix = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)
    for terms in ([True, True], [True, False], [False, True]):  # of the loss: log-probabilities, entropy
        our_loss, their_loss = (
            terms[0] * (mix * found[0]).sum() + terms[1] * (mix**2 * found[1]).sum() for found in (ours, theirs)
        )
        our_gradients = torch.autograd.grad(our_loss, leaves, retain_graph=True)
        their_gradients = torch.autograd.grad(their_loss, leaves, retain_graph=True)
        torch.testing.assert_close(our_gradients, their_gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("reach", [1.0, 30.0, 300.0])  # of the logits before a cap of 30: below it, at it, above
def test_gradients_of_capped_float32_logits_are_those_of_float64(reach: float) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 16, generator=generator) * reach / 4
    weight = torch.randn(300, 16, generator=generator)
    targets = torch.randint(0, 300, (64,), generator=generator)
    temperature = torch.rand(64, generator=generator) + 0.5
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    found = token_logprobs(
        hidden, weight, targets, cap=30.0, temperature=temperature, chunk_elements=2000, kept_elements=9000
    )
    ours = torch.autograd.grad(found.logprobs.mean() + 0.1 * found.entropy.mean(), leaves)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logprobs, entropy = capped(
        doubles[0], doubles[1], torch.zeros(300).double(), targets, temperature.double(), 1.0, 30.0
    )
    torch.testing.assert_close(found.logprobs.double(), logprobs, rtol=0, atol=2e-5)
    theirs = torch.autograd.grad(logprobs.mean() + 0.1 * entropy.mean(), doubles)
    for gradient, exact in zip(ours, theirs, strict=True):
        scale = max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=1e-6 * scale)


def test_a_scale_of_one_and_no_cap_change_no_bit() -> None:
    hidden, weight, bias, targets, temperature = inputs(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    results = []
    for options in ({}, {"scale": 1.0, "cap": None}, {"scale": 2.0}):
        found = token_logprobs(hidden, weight, targets, bias=bias, temperature=temperature, **options)
        gradients = torch.autograd.grad(found.logprobs.sum() + found.entropy.sum(), leaves)
        results.append((*found, *gradients))
    same = [[torch.equal(one, other) for one, other in zip(results[0], result, strict=True)] for result in results[1:]]
    assert same[0] == [True] * 5
    assert same[1] == [False] * 5


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


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_logits_of_bfloat16_states_are_not_rounded_to_bfloat16(weights: torch.dtype) -> None:
    hidden, weight, bias, targets, temperature = inputs(torch.bfloat16)
    hidden, bias = 20 * hidden, bias.float()  # logits of 40, which bfloat16 rounds by up to 0.125
    ours = token_logprobs(hidden, weight.to(weights), targets, bias=bias, temperature=temperature.float())
    assert ours.logprobs.dtype == ours.entropy.dtype == torch.float32
    exact = with_all_logits(hidden.double(), weight.double(), bias.double(), targets, temperature.double())
    torch.testing.assert_close(tuple(each.double() for each in ours), exact, rtol=1e-5, atol=1e-5)


def test_only_products_of_bfloat16_states_may_be_in_bfloat16() -> None:
    products: Any = torch.backends.mkldnn

    def precision() -> str:
        return str(products.matmul.fp32_precision)

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.add((func.__name__, precision()))
            return func(*args, **(kwargs or {}))

    before = precision()
    assert before != "bf16"  # no test before this one has left it on
    for dtype, expected in ((torch.bfloat16, "bf16"), (torch.float32, before), (torch.float64, before)):
        seen: set[tuple[str, str]] = set()
        hidden, weight, _, targets, _ = inputs(dtype)
        with Watch():
            logprobs = token_logprobs(hidden.requires_grad_(), weight, targets).logprobs
        assert ("matmul", expected) in seen or ("__matmul__", expected) in seen, seen
        logprobs.sum().backward()  # type: ignore[no-untyped-call]
        assert precision() == before
    hidden, weight, _, targets, _ = inputs(torch.bfloat16)
    with pytest.raises(RuntimeError):
        token_logprobs(hidden, weight[:, 1:], targets)
    assert precision() == before


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


@pytest.mark.parametrize("cap", [None, 3.0])
def test_no_tensor_of_tokens_by_vocabulary_is_made(cap: float | None) -> None:
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
            hidden, weight, torch.zeros(64, dtype=torch.int64), cap=cap, chunk_elements=2000, kept_elements=4000
        ).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert largest <= weight.numel() <= 64 * 1000 / 16
