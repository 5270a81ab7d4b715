"""Log-probabilities of tokens from hidden states, without a (batch, time, vocabulary) tensor.

The logits of a few tokens at a time are made, reduced to a log-probability (and an entropy), and dropped;
the backward pass makes them again. Peak memory is that of one chunk, whatever the vocabulary and the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22  # logits made at a time: 16 MiB of float32


class TokenLogprobs(NamedTuple):
    """logprobs: (N,), nats, of each target. entropy: (N,), nats, of each whole distribution."""

    logprobs: Tensor
    entropy: Tensor


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TokenLogprobs:
    """Log-probability of each target, and entropy, under softmax((hidden @ weight.T + bias) / temperature).

    hidden: (N, D), the states that predict the targets; weight: (V, D); targets: (N,) int64; bias: (V,);
    temperature: (N,), positive. Products are taken in the dtype of `hidden`, softmax in float32 (float64
    for float64 input). Differentiable in hidden, weight and bias, through both results.
    """
    result: Any = _TokenLogprobs.apply(hidden, weight, bias, targets, temperature, chunk_elements)  # type: ignore[no-untyped-call]
    return TokenLogprobs(*result)


def _log_softmax(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor | None
) -> Tensor:  # (n, D), (V, D) -> (n, V)
    logits = hidden @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if temperature is not None:
        logits = logits / temperature[:, None].to(logits.dtype)
    return torch.log_softmax(logits, dim=-1)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor | None,
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor]:
        chunk = max(1, chunk_elements // weight.shape[0])
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = hidden.new_empty(hidden.shape[0], dtype=wide)
        entropy = torch.empty_like(logprobs)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(hidden.dtype)
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, start + chunk)
                log_p = _log_softmax(hidden[rows], head, bias, None if temperature is None else temperature[rows])
                logprobs[rows] = log_p.gather(-1, targets[rows, None]).squeeze(-1)
                entropy[rows] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, temperature, entropy)
        ctx.chunk = chunk
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropy = grads
        hidden, weight, bias, targets, temperature, entropy = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = entropy.dtype
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        head = weight.to(hidden.dtype)
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            heat = None if temperature is None else temperature[rows]
            log_p = _log_softmax(hidden[rows], head, bias, heat)
            p = log_p.exp()
            # d logprob / d logits = onehot - p; d entropy / d logits = -p * (log p + entropy)
            grad = -p * (grad_logprobs[rows, None] + grad_entropy[rows, None] * (log_p + entropy[rows, None]))
            grad.scatter_add_(-1, targets[rows, None], grad_logprobs[rows, None])
            if heat is not None:
                grad = grad / heat[:, None].to(wide)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ head
            if grad_weight is not None:
                grad_weight += grad.T @ hidden[rows]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )
