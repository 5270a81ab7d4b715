"""Log-probabilities of tokens from hidden states, without a (batch, time, vocabulary) tensor.

The logits are computed in tiles of some tokens by some of the vocabulary. The forward pass reduces each tile to a few
numbers per token and drops it; the backward pass computes it again, except for the first tiles, whose logits it kept.
Peak memory is that of one tile plus the kept logits, whatever the size of the vocabulary and of the batch.

Shapes: N tokens, V entries of the vocabulary, D hidden width; a tile has n of the tokens and v of the vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from primecli.core.after_head import AfterHead

# Logits in one tile: 16 MiB and 512 MiB in float32. Enough for matrix products to run at full speed on that device, and
# little beside a model's own memory.
CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
# Logits kept for the backward pass: 256 MiB and 1.5 GiB in float32. For a small vocabulary that is often all of them,
# so that none is computed twice; for a large one it bounds the memory.
KEPT_ELEMENTS = {"cpu": 1 << 26, "cuda": 3 << 27}
# A tile is at least this wide, and then has fewer tokens: the products of narrower tiles are slow.
MIN_TILE_VOCABULARY = 256
# Where the vocabulary is split, the width of tiles is a multiple of this. On a GPU, rows of 16-bit numbers that do not
# begin at a multiple of 16 bytes are multiplied by far slower kernels.
TILE_ALIGNMENT = 64
# On a CPU, softmax works through a tile in blocks of this size, 4 MiB in float32: it passes over each block several
# times, and a block of this size stays in the cache in between.
BLOCK_ELEMENTS = 1 << 20


class TokenLogprobs(NamedTuple):
    """What the model says of each token.

    logprobs: (N,), nats, of each target.
    entropy: (N,), nats, of the whole distribution at each token; (0,) unless it was asked for.
    """

    logprobs: Tensor
    entropy: Tensor


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    temperature: Tensor | None = None,
    with_entropy: bool = True,
    chunk_elements: int | None = None,
    kept_elements: int | None = None,
) -> TokenLogprobs:
    """Log-probability of each target, and entropy, under softmax(logits / temperature).

    The logits are z = scale * (hidden @ weight.T + bias), or cap * tanh(z / cap) where there is a cap: see `AfterHead`.

    Differentiable in hidden, weight and bias, through both results. Products are computed in the dtype of `hidden`,
    all else in float32 (float64 for float64 input). Products of bfloat16 matrices have float32 results: logits are not
    rounded. The entropy adds about half to the time; a cap adds memory for one more tile to the backward pass.

    hidden: (N, D), the states that predict the targets. weight: (V, D). targets: (N,) int64. bias: (V,). scale, cap:
    positive; the cap is the largest absolute value that a logit can have. temperature: (N,), positive. chunk_elements:
    logits in one tile; kept_elements: logits kept for the backward pass; the device decides where they are None.

    >>> state, head = torch.tensor([[1.0]]), torch.tensor([[200.0], [100.0]])
    >>> token_logprobs(state, head, torch.tensor([1]), scale=0.125).logprobs  # 12.5 - 25, with nothing beside it
    tensor([-12.5000])
    >>> token_logprobs(state, head, torch.tensor([1]), cap=2.0).logprobs.exp()  # both logits are at the cap
    tensor([0.5000])
    """
    kind = hidden.device.type
    chunk = chunk_elements or CHUNK_ELEMENTS.get(kind, CHUNK_ELEMENTS["cuda"])
    kept = KEPT_ELEMENTS.get(kind, KEPT_ELEMENTS["cuda"]) if kept_elements is None else kept_elements
    kept = kept if torch.is_grad_enabled() else 0
    result: Any = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, temperature, AfterHead(scale, cap), with_entropy, chunk, kept
    )
    return TokenLogprobs(*result)


class _Tile(NamedTuple):
    """The logits of some tokens over some of the vocabulary.

    logits: (n, v), in memory of their own, so that they may be overwritten.
    columns: which entries of the vocabulary they are for, v of the V.
    rows: which tokens they are of, n of the N.
    """

    logits: Tensor
    columns: slice
    rows: slice


class _Kept(NamedTuple):
    """A tile's logits as the forward pass left them.

    shifted: (n, v), the logits minus `shift`.
    shift: (n,), the largest logit that the forward pass had seen of each token by then.
    """

    shifted: Tensor
    shift: Tensor


def _tile_shape(vocabulary: int, tokens: int, elements: int) -> tuple[int, int]:
    """Vocabulary entries and tokens of a tile: all tokens, unless that makes it narrower than MIN_TILE_VOCABULARY.

    >>> _tile_shape(151_936, 10_000, 1 << 27), _tile_shape(50, 10_000, 1 << 27)
    ((13376, 10034), (50, 2684354))
    """
    columns = min(vocabulary, max(elements // max(1, tokens), min(elements, MIN_TILE_VOCABULARY)))
    if TILE_ALIGNMENT < columns < vocabulary:
        columns -= columns % TILE_ALIGNMENT
    return columns, max(1, elements // columns)


def _tiles(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    after: AfterHead,
    temperature: Tensor | None,
    shape: tuple[int, int],
    kept: deque[_Kept] | None = None,
) -> Iterator[_Tile]:
    """All tiles: every token for the first columns, then every token for the next, so that each weight is read once.

    shape: as `_tile_shape` returns it. kept: the first tiles, which are not computed again; each is removed from there
    as it is yielded, so that its memory is freed as soon as the caller is done with it.
    """
    width, height = shape  # v, n
    for first in range(0, len(weight), width):
        columns = slice(first, min(first + width, len(weight)))
        head = weight[columns].to(hidden.dtype)  # (v, D)
        for start in range(0, len(hidden), height):
            rows = slice(start, min(start + height, len(hidden)))
            if kept:
                shifted, shift = kept.popleft()  # (n, v), (n,)
                yield _Tile(shifted.add_(shift[:, None]), columns, rows)
                continue
            logits = _product(hidden[rows], head.T)  # (n, D) @ (D, v) = (n, v)
            if bias is not None:
                logits += bias[columns].to(logits.dtype)
            after.apply_(logits)
            if temperature is not None:
                logits /= temperature[rows, None].to(logits.dtype)
            yield _Tile(logits, columns, rows)


def _find_targets(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Each target's index among these columns, and whether it is there at all: (n,) int64, (n,) bool.

    The index of a target that is elsewhere is clamped, so that it can be gathered with; its result must be masked.
    """
    index = targets - columns.start
    inside = (index >= 0) & (index < columns.stop - columns.start)
    return index.clamp_(0, columns.stop - columns.start - 1), inside


class _Running(NamedTuple):
    """Softmax statistics of each token over the columns seen so far, updated in place (arXiv 1805.02867).

    chosen: (N,), the target's logit; 0 until its column has been seen.
    top: (N,), the largest logit.
    mass: (N,), the sum of exp(logit - top).
    moment: (N,), the sum of exp(logit - top) * (logit - top), from which the entropy follows.
    """

    chosen: Tensor
    top: Tensor
    mass: Tensor
    moment: Tensor

    @classmethod
    def start(cls, tokens: int, like: Tensor, dtype: torch.dtype) -> _Running:
        """Before the first column. `top` is the lowest finite number: with -inf, 0 * (top - largest) would be NaN."""
        zeros = like.new_zeros(tokens, dtype=dtype)
        return cls(zeros, torch.full_like(zeros, torch.finfo(dtype).min), zeros.clone(), zeros.clone())

    def add(
        self, part: Tensor, targets: Tensor, columns: slice, rows: slice, *, with_entropy: bool, keeps: bool
    ) -> None:
        """Adds some rows of a tile. part: (n, v), their logits, which are overwritten (by logits - top where `keeps`).

        targets: (n,), theirs. columns, rows: what of the vocabulary and which of the N tokens they are.
        """
        chosen, top, mass, moment = (statistic[rows] for statistic in self)  # (n,) each, views
        index, inside = _find_targets(targets, columns)
        chosen += part.gather(-1, index[:, None]).squeeze(-1).where(inside, 0)
        largest = torch.maximum(top, part.amax(-1))  # (n,)
        lift = top - largest  # at most 0: sums relative to the old top shrink by exp(lift)
        top.copy_(largest)
        part -= largest[:, None]
        share = part.exp() if with_entropy or keeps else part.exp_()  # (n, v)
        if with_entropy:
            before = (moment + mass * lift) * lift.exp()  # the old moment, relative to the new top
            moment.copy_(before + torch.linalg.vecdot(share, part))
        mass.copy_(mass * lift.exp() + share.sum(-1))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right as float32, or float64 for float64 input.

    The product of 16-bit matrices is rounded to 16 bits first where a GPU cannot do without: a logit of 20 would be
    off by up to 0.06 in bfloat16. On a CPU there are none here, see `_computing`.
    """
    if left.dtype == torch.float64:
        return left @ right
    if left.dtype != torch.float32 and _has_wide_products(left.device, left.dtype):
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


@contextlib.contextmanager
def _computing(hidden: Tensor) -> Iterator[Tensor]:
    """Where products are computed in the dtype of these states, (N, D), without rounding their results to 16 bits.

    Yields the states to compute with. On a CPU, torch has no products of 16-bit matrices with float32 results. But
    oneDNN can round float32 matrices as it reads them, on processors whose instructions for bfloat16 make that faster;
    others compute in float32. The setting is the process's, so it must not outlive the products.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.device.type != "cpu" or hidden.dtype.itemsize != 2:
            yield hidden
            return
        matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)  # from torch 2.9 on
        if matmul is None or hidden.dtype != torch.bfloat16:
            yield hidden.float()
            return
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16"
        try:
            yield hidden.float()
        finally:
            matmul.fp32_precision = before


@functools.cache
def _has_wide_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies 16-bit matrices into a float32 one on this device: on CUDA, from 2.8 on."""
    if device.type != "cuda":
        return False
    small = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.mm(small, small, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, overwrite: bool = False) -> None:
    """total += left @ right, summed in the dtype of `total`; with `overwrite`, total = left @ right."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if overwrite else 1)
    elif overwrite:
        total.copy_(_product(left, right))
    else:
        total += _product(left, right)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor | None,
        after: AfterHead,
        with_entropy: bool,
        chunk_elements: int,
        kept_elements: int,
    ) -> tuple[Tensor, Tensor]:
        given = hidden
        ctx.after = after
        ctx.tile_shape = _tile_shape(len(weight), len(hidden), chunk_elements)
        width, height = ctx.tile_shape
        block = max(1, BLOCK_ELEMENTS // width) if hidden.device.type == "cpu" else height  # rows of a tile per block
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        running = _Running.start(len(hidden), hidden, wide)
        kept: deque[_Kept] = deque()
        with _computing(given) as hidden:
            for logits, columns, rows in _tiles(hidden, weight, bias, after, temperature, ctx.tile_shape):
                kept_elements -= logits.numel()
                keeps = kept_elements >= 0 and any(ctx.needs_input_grad)
                for first in range(0, len(logits), block):
                    part = logits[first : first + block]
                    some = slice(rows.start + first, rows.start + first + len(part))
                    running.add(part, targets[some], columns, some, with_entropy=with_entropy, keeps=keeps)
                if keeps:
                    kept.append(_Kept(logits, running.top[rows].clone()))
        chosen, top, mass, moment = running
        logprobs = chosen - top - mass.log()  # (N,)
        normaliser = top + mass.log()  # (N,): log of the sum of exp(logit)
        # -sum p log p, with p = exp(logit - top) / mass and log p = logit - top - log mass
        entropy = mass.log() - moment / mass if with_entropy else logprobs.new_empty(0)
        ctx.kept = kept
        ctx.save_for_backward(given, weight, bias, targets, temperature, normaliser, entropy)
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given, weight, bias, targets, temperature, normaliser, entropy = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads  # (N,) each, or None where the loss does not depend on it
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normaliser)
        if grad_entropy is not None and not grad_entropy.numel():
            grad_entropy = None
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = normaliser.dtype
        grad_hidden = torch.zeros_like(given, dtype=wide) if wants_hidden else None  # (N, D), summed over tiles
        # every column is written once the tiles of all tokens are summed; without tokens there are no tiles
        blank = torch.empty_like if len(given) else torch.zeros_like
        grad_weight = blank(weight) if wants_weight else None  # (V, D)
        grad_bias = blank(bias) if wants_bias else None  # (V,)
        weight_sum: Tensor | None = None  # (v, D), of the current columns
        bias_sum: Tensor | None = None  # (v,), of the current columns
        kept, ctx.kept = ctx.kept, deque()  # using them destroys them: a second backward pass computes every tile
        after: AfterHead = ctx.after
        with _computing(given) as hidden:
            for logits, columns, rows in _tiles(hidden, weight, bias, after, temperature, ctx.tile_shape, kept):
                head = weight[columns].to(hidden.dtype)  # (v, D)
                if rows.start == 0:  # the first tile of these columns
                    if grad_weight is not None:
                        own = grad_weight[columns]  # summed in place where its dtype is wide enough
                        weight_sum = own if own.dtype == wide else torch.empty_like(own, dtype=wide)
                    bias_sum = torch.zeros_like(head[:, 0], dtype=wide) if wants_bias else None
                divisor = 1.0 if temperature is None else temperature[rows, None].to(wide)  # (n, 1)
                # the logits themselves are overwritten by their gradient
                slope = None if after.cap is None else after.slope_(logits * divisor)  # (n, v)
                grad = _grad_logits(
                    logits,
                    normaliser[rows],
                    grad_logprobs[rows],
                    None if grad_entropy is None else (entropy[rows], grad_entropy[rows]),
                    _find_targets(targets[rows], columns),
                )
                if temperature is not None:
                    grad /= divisor
                if slope is not None or after.scale != 1.0:
                    grad *= after.scale if slope is None else slope
                del slope  # as large as the tile, which it should not outlive
                if bias_sum is not None:
                    bias_sum += grad.sum(0)
                grad = grad.to(hidden.dtype)  # (n, v)
                if grad_hidden is not None:
                    _add_product(grad_hidden[rows], grad, head)  # (n, v) @ (v, D)
                if weight_sum is not None:
                    _add_product(weight_sum, grad.T, hidden[rows], overwrite=rows.start == 0)  # (v, n) @ (n, D)
                if rows.stop >= len(hidden):  # the last tile of these columns
                    if grad_weight is not None and weight_sum is not None and grad_weight.dtype != wide:
                        grad_weight[columns] = weight_sum
                    if grad_bias is not None and bias_sum is not None:
                        grad_bias[columns] = bias_sum
        return (
            None if grad_hidden is None else grad_hidden.to(given.dtype),
            grad_weight,
            grad_bias,
            *(None,) * 6,  # targets, temperature, scale and cap, and the three options
        )


def _grad_logits(
    logits: Tensor,
    normaliser: Tensor,
    grad_logprobs: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    target: tuple[Tensor, Tensor],
) -> Tensor:
    """The gradient with respect to a tile's logits as softmax sees them, (n, v); overwrites `logits`, (n, v).

    With p = softmax(logits): d logprob / d logits = onehot(target) - p, d entropy / d logits = -p * (log p + entropy).

    normaliser, grad_logprobs: (n,). entropy: it and its gradient, (n,) each. target: as `_find_targets` returns it.
    """
    log_p = logits.sub_(normaliser[:, None])
    if entropy is None:
        grad = log_p.exp_().mul_(-grad_logprobs[:, None])
    else:
        value, grad_value = entropy
        p = log_p.exp()
        factor = log_p.add_(value[:, None]).mul_(grad_value[:, None])
        grad = p.mul_(factor.add_(grad_logprobs[:, None])).neg_()
    index, inside = target
    return grad.scatter_add_(-1, index[:, None], grad_logprobs.where(inside, 0)[:, None])
