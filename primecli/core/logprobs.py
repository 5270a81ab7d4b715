"""Log-probabilities of tokens from hidden states, without a (batch, time, vocabulary) tensor.

The logits of a few words at a time are made, reduced to a log-probability (and an entropy), and dropped; the backward
pass makes them again, but for the first, which are kept. Peak memory is that of a chunk and of what is kept, whatever
the vocabulary and the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits made at a time, float32: 16 MiB, 512 MiB
KEPT_ELEMENTS = {"cpu": 1 << 26, "cuda": 3 << 27}  # of them, those kept for the backward pass: 256 MiB, 1.5 GiB
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
    kept_elements: int | None = None,
) -> TokenLogprobs:
    """Log-probability of each target, and entropy, under softmax((hidden @ weight.T + bias) / temperature).

    hidden: (N, D), the states that predict the targets; weight: (V, D); targets: (N,) int64; bias: (V,);
    temperature: (N,), positive. Products are taken in the dtype of `hidden`, softmax in float32 (float64
    for float64 input). Differentiable in hidden, weight and bias, through both results. The entropy costs about half as
    much again. chunk_elements: logits made at a time; kept_elements: logits kept for the backward pass; each by the
    device when None.
    """
    kind = hidden.device.type
    chunk = chunk_elements or CHUNK_ELEMENTS.get(kind, CHUNK_ELEMENTS["cuda"])
    kept = KEPT_ELEMENTS.get(kind, KEPT_ELEMENTS["cuda"]) if kept_elements is None else kept_elements
    kept = kept if torch.is_grad_enabled() else 0
    result: Any = _TokenLogprobs.apply(hidden, weight, bias, targets, temperature, with_entropy, chunk, kept)  # type: ignore[no-untyped-call]
    return TokenLogprobs(*result)


def _tile(words: int, tokens: int, elements: int) -> tuple[int, int]:
    """How many words by how many tokens of logits are made at a time: all tokens, if not too many."""
    columns = min(words, max(elements // max(1, tokens), min(elements, LEAST_WORDS)))
    return columns, max(1, elements // columns)


def _tiles(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    tile: tuple[int, int],
    kept: deque[tuple[Tensor, Tensor]] | None = None,
) -> Iterator[tuple[Tensor, slice, slice]]:
    """The logits of some tokens and words, (t, w), of their own memory, with the words and the tokens that they are of.

    All tokens of the same words come one after another, so that the weights of each word are read once. kept: the first
    tiles, less a number for each token: given out rather than made, and taken from there, so that each is freed once it
    has been used.
    """
    words, tokens = tile
    for first in range(0, len(weight), words):
        columns = slice(first, min(first + words, len(weight)))
        head = weight[columns].to(hidden.dtype)
        for start in range(0, len(hidden), tokens):
            rows = slice(start, min(start + tokens, len(hidden)))
            if kept:
                found, less = kept.popleft()
                yield found.add_(less[:, None]), columns, rows
                continue
            logits = hidden[rows] @ head.T
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if bias is not None:
                logits += bias[columns].to(logits.dtype)
            if temperature is not None:
                logits /= temperature[rows, None].to(logits.dtype)
            yield logits, columns, rows


def _within(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Where the targets stand among these words, and whether they do: (t,) int64, (t,) bool."""
    place = targets - columns.start
    inside = (place >= 0) & (place < columns.stop - columns.start)
    return place.clamp_(0, columns.stop - columns.start - 1), inside


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, afresh: bool = False) -> None:
    """total += left @ right, the sum in the dtype of `total`; afresh: whatever `total` held does not count."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if afresh else 1)
    elif afresh:
        total.copy_(left @ right)
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
        kept_elements: int,
    ) -> tuple[Tensor, Tensor]:
        words, tokens = ctx.tile = _tile(len(weight), len(hidden), chunk_elements)
        kept: deque[tuple[Tensor, Tensor]] = deque()  # the first tiles' logits less what follows, (t, w) and (t,)
        block = max(1, BLOCK_ELEMENTS // words) if hidden.device.type == "cpu" else tokens
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        # of the logits so far, token by token: the target's, the largest, and, relative to the largest, the sum of
        # their exponentials and of these times the logits
        chosen = hidden.new_zeros(len(hidden), dtype=wide)
        top, mass, moment = torch.full_like(chosen, torch.finfo(wide).min), chosen.clone(), chosen.clone()
        with torch.autocast(hidden.device.type, enabled=False):
            for logits, columns, rows in _tiles(hidden, weight, bias, temperature, ctx.tile):
                kept_elements -= logits.numel()
                keeps = kept_elements >= 0 and any(ctx.needs_input_grad)
                for first in range(0, len(logits), block):
                    part = logits[first : first + block]
                    some = slice(rows.start + first, rows.start + first + len(part))
                    place, inside = _within(targets[some], columns)
                    chosen[some] += part.gather(-1, place[:, None]).squeeze(-1).where(inside, 0)
                    largest = torch.maximum(top[some], part.amax(-1))
                    lift, top[some] = top[some] - largest, largest
                    part -= largest[:, None]
                    share = part.exp() if with_entropy or keeps else part.exp_()
                    if with_entropy:
                        before = (moment[some] + mass[some] * lift) * lift.exp()
                        moment[some] = before + torch.linalg.vecdot(share, part)
                    mass[some] = mass[some] * lift.exp() + share.sum(-1)
                if keeps:
                    kept.append((logits, top[rows].clone()))
        logprobs = chosen - top - mass.log()
        normaliser = top + mass.log()
        entropy = mass.log() - moment / mass if with_entropy else logprobs.new_empty(0)
        ctx.kept = kept
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
        blank = torch.empty_like if len(hidden) else torch.zeros_like
        grad_weight = blank(weight) if wants_weight else None
        grad_bias = blank(bias) if wants_bias else None
        weight_sum: Tensor | None = None
        bias_sum: Tensor | None = None
        kept, ctx.kept = ctx.kept, deque()  # they are written to: a second backward pass makes its own
        for log_p, columns, rows in _tiles(hidden, weight, bias, temperature, ctx.tile, kept):
            head = weight[columns].to(hidden.dtype)
            if rows.start == 0:
                if grad_weight is not None:  # summed where it is to be, if that is exact
                    there = grad_weight[columns]
                    weight_sum = there if there.dtype == wide else torch.empty_like(there, dtype=wide)
                bias_sum = torch.zeros_like(head[:, 0], dtype=wide) if wants_bias else None
            log_p -= normaliser[rows, None]
            # d logprob / d logits = onehot - p; d entropy / d logits = -p * (log p + entropy)
            if grad_entropy is None:
                grad = log_p.exp_().mul_(-grad_logprobs[rows, None])
            else:
                p = log_p.exp()
                factor = log_p.add_(entropy[rows, None]).mul_(grad_entropy[rows, None])
                grad = p.mul_(factor.add_(grad_logprobs[rows, None])).neg_()
            place, inside = _within(targets[rows], columns)
            grad.scatter_add_(-1, place[:, None], grad_logprobs[rows].where(inside, 0)[:, None])
            if temperature is not None:
                grad /= temperature[rows, None].to(wide)
            if bias_sum is not None:
                bias_sum += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden[rows], grad, head)
            if weight_sum is not None:
                _add_product(weight_sum, grad.T, hidden[rows], afresh=rows.start == 0)
            if rows.stop >= len(hidden):
                if grad_weight is not None and weight_sum is not None and grad_weight.dtype != wide:
                    grad_weight[columns] = weight_sum
                if grad_bias is not None and bias_sum is not None:
                    grad_bias[columns] = bias_sum
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            grad_weight,
            grad_bias,
            *(None,) * 5,
        )
