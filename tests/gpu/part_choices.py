"""Choices: ways to compute the same, side by side, so that the defaults can follow."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from primecli.core.logprobs import token_logprobs
from primecli.models import scoring
from primecli.models.attention import Segment, attend
from primecli.models.device import Placement
from primecli.shards.rollouts import Sequences
from tests.gpu.context import Context
from tests.gpu.models import make_config, make_model
from tests.gpu.timing import median_seconds, peak_gib, reset_memory, seconds_of

SAME = 2e-2  # of the norm, between kernels in bfloat16
REPEATS = 3


def run(context: Context) -> None:
    """Each choice; one that cannot be made here is a note."""
    for choice in (compare_packing, compare_attention, compare_backends, compare_tiles):
        attempt(context, choice.__name__, partial(choice, context))
        reset_memory(context.device)


def attempt(context: Context, what: str, work: Callable[[], object]) -> None:
    """Does the work; where it raises, what it raised is a note: it compares, and what is right is for another part."""
    try:
        work()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        context.report.skip(what, f"{type(error).__name__}: {first[:200]}")


@dataclass(frozen=True)
class Ragged:
    """A packed row, and how its tokens see each other.

    segments: as `attend` takes them. starts: where each begins in the row, and the end.
    """

    segments: list[Segment]

    @property
    def starts(self) -> list[int]:
        """Where each segment begins, and the end of the last."""
        return [0, *accumulate(segment.length for segment in self.segments)]

    def keys(self, number: int) -> list[tuple[int, int]]:
        """The spans of the row that a segment's last token sees."""
        prefix = self.segments[number].prefix
        own = (self.starts[number], self.starts[number + 1])
        return [own] if prefix is None else [(self.starts[prefix], self.starts[prefix + 1]), own]


def ragged(tokens: int, lengths: tuple[int, int], prompt: int = 0, samples: int = 8) -> Ragged:
    """Sequences of random lengths that fill a row; with a prompt, so many samples share each."""
    generator = np.random.default_rng(0)
    segments: list[Segment] = []
    left = tokens
    while left >= (prompt + lengths[1]):
        group = len(segments) if prompt else None
        if prompt:
            segments.append(Segment(prompt))
            left -= prompt
        for _ in range(samples if prompt else 1):
            length = int(generator.integers(*lengths))
            if length <= left:
                segments.append(Segment(length, group))
                left -= length
    return Ragged(segments)


def compare_attention(context: Context) -> None:
    """Attention over ragged rows of 1.5B's heads: by pieces, padded, by flex_attention, by varlen."""
    config = make_config("1.5B", tiny=context.tiny)
    tokens, lengths, prompt = (16384, (512, 3072), 512) if not context.tiny else (200, (8, 30), 10)
    for name, rows in (
        ("separate sequences", ragged(tokens, lengths)),
        ("shared prompts", ragged(tokens, (lengths[0] // 2, lengths[1] // 3), prompt)),
    ):
        attempt(context, f"attention, {name}", partial(_compare_attention, context, config, name, rows))


def _compare_attention(context: Context, config: Any, name: str, rows: Ragged) -> None:
    report, device = context.report, context.device
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (  # (1, H, T, d), laid out as a model's are: (1, T, H, d)
        torch.randn(
            1, rows.starts[-1], number, size, generator=generator, device=device, dtype=torch.bfloat16
        ).transpose(1, 2)
        for number in (heads, config.num_key_value_heads, config.num_key_value_heads)
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    weights = torch.randn(1, rows.starts[-1], heads, size, generator=generator, device=device, dtype=torch.bfloat16)
    module = torch.nn.Identity()

    def by_pieces() -> Tensor:
        return attend(module, query, key, value, None, segments=rows.segments)[0]

    def gradients(way: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(way(), leaves, weights)

    expected = [by_pieces().detach(), *gradients(by_pieces)]
    baseline = median_seconds(lambda: gradients(by_pieces), device, REPEATS)
    text = f"{name}: forward and backward, {len(rows.segments)} segments, {rows.starts[-1]} tokens"
    report.figure(f"{text}, by pieces", 1000 * baseline, "ms")

    def measure(way_name: str, prepare: Callable[[], Callable[[], Tensor]]) -> None:
        start = time.perf_counter()
        way = prepare()
        found = [way().detach(), *gradients(way)]
        report.figure(f"{name}: first call of {way_name}", time.perf_counter() - start, "s")
        seconds = median_seconds(lambda: gradients(way), device, REPEATS)
        report.figure(f"{text}, {way_name}", 1000 * seconds, "ms", f"{1000 * baseline:.3g} ms by pieces")
        for what, ours, theirs in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
            difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
            report.at_most(f"{name}, {way_name}: {what}, difference to by pieces", difference, SAME)

    attempt(context, f"{name}, padded", lambda: measure("padded", lambda: padded(rows, query, key, value)))
    attempt(context, f"{name}, varlen", lambda: measure("varlen", lambda: varlen(rows, query, key, value)))
    attempt(context, f"{name}, flex", lambda: measure("flex", lambda: flex(rows, query, key, value, gpu=context.gpu)))


def padded(rows: Ragged, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """Rows of one sequence each, a shared prompt in each of them, padded on the right. Padding and unpadding count."""
    wholes = [number for number, segment in enumerate(rows.segments) if not _is_prompt(rows, number)]
    spans = [[index for span in rows.keys(number) for index in range(*span)] for number in wholes]
    longest = max(map(len, spans))
    gather = torch.tensor([span + [0] * (longest - len(span)) for span in spans], device=query.device)  # (B, T)
    flat: dict[int, int] = {}  # where a token of the packed row stands among the B * T
    for number, span in enumerate(spans):
        for place, index in enumerate(span):
            flat.setdefault(index, number * longest + place)
    back = torch.tensor([flat[index] for index in range(rows.starts[-1])], device=query.device)

    def way() -> Tensor:
        queries, keys, values = (tensor[0][:, gather].transpose(0, 1) for tensor in (query, key, value))  # (B, H, T, d)
        output = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        return output.transpose(1, 2).flatten(0, 1)[back][None]

    return way


def _is_prompt(rows: Ragged, number: int) -> bool:
    """Whether other segments see this one."""
    return any(segment.prefix == number for segment in rows.segments)


def flex(rows: Ragged, query: Tensor, key: Tensor, value: Tensor, *, gpu: bool) -> Callable[[], Tensor]:
    """torch's flex_attention, compiled on a GPU, with the mask that says which segment sees which."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device, total = query.device, rows.starts[-1]
    lengths = torch.tensor([segment.length for segment in rows.segments], device=device)
    numbers = torch.arange(len(rows.segments), device=device)
    prefixes = torch.tensor([-1 if one.prefix is None else one.prefix for one in rows.segments], device=device)
    owner = numbers.repeat_interleave(lengths)  # (T,), the segment of each token
    seen = prefixes.repeat_interleave(lengths)  # (T,), the segment that it sees as a whole

    def sees(batch: Tensor, head: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:
        own = (owner[query_index] == owner[key_index]) & (query_index >= key_index)
        return own | (seen[query_index] == owner[key_index])

    mask = create_block_mask(sees, None, None, total, total, device=str(device))
    attention: Any = torch.compile(flex_attention, dynamic=False) if gpu else flex_attention

    def way() -> Tensor:
        output: Tensor = attention(query, key, value, block_mask=mask, enable_gqa=True)
        return output.transpose(1, 2)

    return way


def varlen(rows: Ragged, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """torch's own flash attention over sequences of different lengths; a shared prompt's keys are copied."""
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    named: dict[str, Any] = {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}
    grouped = query.shape[1] != key.shape[1]
    if grouped and "enable_gqa" in parameters:
        named["enable_gqa"] = True
    spans = [rows.keys(number) for number in range(len(rows.segments))]
    gather = torch.tensor([index for pair in spans for span in pair for index in range(*span)], device=query.device)
    key_lengths = [sum(stop - start for start, stop in pair) for pair in spans]
    query_starts, key_starts = (
        torch.tensor(starts, dtype=torch.int32, device=query.device)
        for starts in (rows.starts, [0, *accumulate(key_lengths)])
    )
    longest = max(segment.length for segment in rows.segments)
    copies = 1 if not grouped or "enable_gqa" in named else query.shape[1] // key.shape[1]
    shares = any(segment.prefix is not None for segment in rows.segments)

    def way() -> Tensor:
        queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, H, d)
        if shares:
            keys, values = keys[gather], values[gather]
        if copies > 1:
            keys, values = (tensor.repeat_interleave(copies, dim=1) for tensor in (keys, values))
        output: Any = varlen_attn(queries, keys, values, query_starts, key_starts, longest, max(key_lengths), **named)
        return (output if isinstance(output, Tensor) else output[0])[None]

    return way


def compare_backends(context: Context) -> None:
    """Attention over rows of new shapes, and of known ones, with and without cuDNN's kernel, which plans each shape."""
    report, device = context.report, context.device
    config = make_config("1.5B", tiny=context.tiny)
    heads, shared, size = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    scale = 100 if context.tiny else 1
    shapes = [(8, 2048 // scale + number) for number in range(0, 96, 16)]
    median_seconds(lambda: attention_step((2, 16), heads, shared, size // heads, device), device, 1)
    for allowed in (False, True):
        if context.gpu:
            torch.backends.cuda.enable_cudnn_sdp(allowed)
        name = f"attention of 8 rows of about {shapes[0][1]}, cuDNN {'allowed' if allowed else 'off'}"
        for what in ("new shapes", "known shapes"):
            seconds = [
                seconds_of(partial(attention_step, shape, heads, shared, size // heads, device), device)
                for shape in shapes
            ]
            report.figure(f"{name}: {what}", 1000 * sum(seconds) / len(seconds), "ms", "primecli turns cuDNN's off")
    if context.gpu:
        torch.backends.cuda.enable_cudnn_sdp(False)


def attention_step(shape: tuple[int, int], heads: int, shared: int, size: int, device: torch.device) -> None:
    """Forward and backward of causal attention over rows of random numbers."""
    rows, tokens = shape
    query, key, value = (
        torch.randn(rows, number, tokens, size, device=device, dtype=torch.bfloat16, requires_grad=True)
        for number in (heads, shared, shared)
    )
    scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).sum().backward()  # type: ignore[no-untyped-call]


def compare_packing(context: Context) -> None:
    """Scoring and gradients of a few layers of 1.5B's shape, rows padded and packed: what --packing should be."""
    report, device = context.report, context.device
    config = make_config("1.5B", tiny=context.tiny, num_hidden_layers=2 if context.tiny else 4)
    model = make_model(config, device, torch.float32)  # as updates hold it; autocast does the rest
    generator = np.random.default_rng(0)
    for name, prompt, low, high, samples in (
        ("8 samples, prompts of 512, responses of 128 to 1024", 512, 128, 1024, 8),
        ("1 sample, prompts of 128, responses of 512 to 3072", 128, 512, 3072, 1),
    ):
        scale = 32 if context.tiny else 1
        prompts = [draw(generator, prompt // scale, config.vocab_size) for _ in range(32 // samples)]
        lengths = generator.integers(low // scale, high // scale, 32)
        responses = [draw(generator, int(length), config.vocab_size) for length in lengths]
        sequences = Sequences([prompts[number // samples] for number in range(32)], responses)
        tokens = sum(sequences.lengths())
        budget = 16384 // scale
        rates: dict[str, list[float]] = {}
        for packing in ("off", "on"):
            placement = Placement(device, torch.bfloat16, packing)
            work = (score, update)
            rates[packing] = [
                tokens / median_seconds(partial(one, model, placement, sequences, budget), device, REPEATS)
                for one in work
            ]
        for what, off, on in zip(("scoring", "gradient"), rates["off"], rates["on"], strict=True):
            report.figure(f"{what}, {name}: packed", on / off, "times", f"padded, {off:.0f} tokens/s")


def draw(generator: np.random.Generator, length: int, vocabulary: int) -> np.ndarray:
    """Random tokens."""
    return generator.integers(2, vocabulary, length).astype(np.int32)


def score(model: Any, placement: Placement, sequences: Sequences, budget: int) -> None:
    """All log-probabilities, without gradient."""
    scoring.score(model, placement, sequences, micro_batch_tokens=budget)


def update(model: Any, placement: Placement, sequences: Sequences, budget: int) -> None:
    """All gradients, without a step."""
    for batch in scoring.plan(model, placement, sequences, range(len(sequences.response_ids)), budget):
        scoring.sequence_logprobs(model, placement, sequences, batch).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def compare_tiles(context: Context) -> None:
    """The head's forward and backward pass at tiles of several sizes, with float32 weights as updates hold them."""
    report, device = context.report, context.device
    config = make_config("1.5B", tiny=context.tiny)
    tokens = 64 if context.tiny else 14336
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, config.hidden_size, generator=generator, device=device, dtype=torch.bfloat16)
    weight = torch.randn(config.vocab_size, config.hidden_size, generator=generator, device=device) * 0.02
    targets = torch.randint(config.vocab_size, (tokens,), generator=generator, device=device)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    products = 3 * 2 * tokens * config.hidden_size * config.vocab_size
    for power in (10, 12) if context.tiny else (24, 25, 26, 27, 28):
        for kept in (0, 3 << power):

            def both(power: int = power, kept: int = kept) -> Sequence[Tensor]:
                found = token_logprobs(hidden, weight, targets, chunk_elements=1 << power, kept_elements=kept)
                return torch.autograd.grad(found.logprobs.sum() + found.entropy.sum(), leaves)

            reset_memory(device)
            before = torch.cuda.memory_allocated(device) / 2**30 if context.gpu else 0.0
            seconds = median_seconds(both, device, REPEATS)
            name = f"head, tiles of 2^{power} logits, {kept >> power} kept"
            rate = f"{products / seconds / 1e12:.3g} TFLOP/s; CHUNK_ELEMENTS is 2^27 on a GPU, and 3 are kept"
            report.figure(name, 1000 * seconds, "ms", rate)
            report.figure(f"{name}: memory", peak_gib(device) - before, "GiB, gradients included")
