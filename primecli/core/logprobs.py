"""Log-probabilities of tokens from hidden states, without a (batch, time, vocabulary) tensor.

The logits of a few tokens at a time are made, reduced to a log-probability (and an entropy), and dropped;
the backward pass makes them again. Peak memory is that of one chunk, whatever the vocabulary and the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}  # logits made at a time, float32: 64 MiB, 512 MiB
LEAST_WORDS = 256  # that the backward pass takes at a time, however many the tokens are
BLOCK_ELEMENTS = 1 << 20  # of these, softmax takes so many at a time on a CPU: 4 MiB, which stay in its cache


class TokenLogprobs(NamedTuple):
    """logprobs: (N,), nats, of each target. entropy: (N,), nats, of each whole distribution, (0,) unless asked for."""

    logprobs: Tensor
    entropy: Tensor


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    with_entropy: bool = True,
    chunk_elements: int | None = None,
) -> TokenLogprobs:
    """Log-probability of each target, and entropy, under softmax((hidden @ weight.T + bias) / temperature).

    hidden: (N, D), the states that predict the targets; weight: (V, D); targets: (N,) int64; bias: (V,);
    temperature: (N,), positive. Products are taken in the dtype of `hidden`, softmax in float32 (float64
    for float64 input). Differentiable in hidden, weight and bias, through both results. The entropy costs about half as
    much again. chunk_elements: logits made at a time; by the device when None.
    """
    chunk = chunk_elements or CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
    result: Any = _TokenLogprobs.apply(hidden, weight, bias, targets, temperature, with_entropy, chunk)  # type: ignore[no-untyped-call]
    return TokenLogprobs(*result)


def _logits(
    hidden: Tensor, head: Tensor, bias: Tensor | None, temperature: Tensor | None
) -> Tensor:  # (n, D), (V, D) -> (n, V), of its own memory
    logits = hidden @ head.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if bias is not None:
        logits += bias.to(logits.dtype)
    if temperature is not None:
        logits /= temperature[:, None].to(logits.dtype)
    return logits


def _tile(words: int, tokens: int, elements: int) -> tuple[int, int]:
    """How many words by how many tokens of logits the backward pass makes at a time: all tokens, if not too many."""
    columns = min(words, max(elements // max(1, tokens), min(elements, LEAST_WORDS)))
    return columns, max(1, elements // columns)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum in the dtype of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor | None,
        with_entropy: bool,
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.chunk_elements = chunk_elements
        chunk = max(1, chunk_elements // weight.shape[0])
        block = max(1, BLOCK_ELEMENTS // weight.shape[0]) if hidden.device.type == "cpu" else chunk
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = hidden.new_empty(hidden.shape[0], dtype=wide)
        normaliser = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(hidden.dtype)
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, start + chunk)
                logits = _logits(hidden[rows], head, bias, None if temperature is None else temperature[rows])
                for first in range(0, len(logits), block):
                    part = logits[first : first + block]
                    some = slice(start + first, start + first + len(part))
                    log_p = torch.log_softmax(part, dim=-1)
                    logprobs[some] = log_p.gather(-1, targets[some, None]).squeeze(-1)
                    normaliser[some] = part.gather(-1, targets[some, None]).squeeze(-1) - logprobs[some]
                    if with_entropy:
                        entropy[some] = -torch.linalg.vecdot(torch.exp(log_p, out=part), log_p)
        ctx.save_for_backward(hidden, weight, bias, targets, temperature, normaliser, entropy)
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, temperature, normaliser, entropy = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normaliser)
        if grad_entropy is not None and not grad_entropy.numel():
            grad_entropy = None
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = normaliser.dtype
        grad_hidden = torch.zeros_like(hidden, dtype=wide) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        words, tokens = _tile(len(weight), len(hidden), ctx.chunk_elements)
        # a tile of the vocabulary at a time, so that weights are read and their gradients written once
        for first in range(0, len(weight), words):
            columns = slice(first, first + words)
            head = weight[columns].to(hidden.dtype)
            weight_sum = torch.zeros_like(head, dtype=wide) if wants_weight else None
            bias_sum = torch.zeros_like(head[:, 0], dtype=wide) if wants_bias else None
            for start in range(0, len(hidden), tokens):
                rows = slice(start, start + tokens)
                heat = None if temperature is None else temperature[rows]
                log_p = _logits(hidden[rows], head, None if bias is None else bias[columns], heat)
                log_p -= normaliser[rows, None]
                # d logprob / d logits = onehot - p; d entropy / d logits = -p * (log p + entropy)
                if grad_entropy is None:
                    grad = log_p.exp_().mul_(-grad_logprobs[rows, None])
                else:
                    p = log_p.exp()
                    factor = log_p.add_(entropy[rows, None]).mul_(grad_entropy[rows, None])
                    grad = p.mul_(factor.add_(grad_logprobs[rows, None])).neg_()
                place = targets[rows, None] - first
                inside = (place >= 0) & (place < len(head))
                grad.scatter_add_(-1, place.clamp_(0, len(head) - 1), grad_logprobs[rows, None] * inside)
                if heat is not None:
                    grad /= heat[:, None].to(wide)
                if bias_sum is not None:
                    bias_sum += grad.sum(0)
                grad = grad.to(hidden.dtype)
                if grad_hidden is not None:
                    _add_product(grad_hidden[rows], grad, head)
                if weight_sum is not None:
                    _add_product(weight_sum, grad.T, hidden[rows])
            if grad_weight is not None and weight_sum is not None:
                grad_weight[columns] = weight_sum
            if grad_bias is not None and bias_sum is not None:
                grad_bias[columns] = bias_sum
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            grad_weight,
            grad_bias,
            None,
            None,
            None,
            None,
        )
