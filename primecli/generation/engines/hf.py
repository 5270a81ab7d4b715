"""Sampling with transformers: batched, with a cache from which ended responses are removed.

Each response has its own random numbers, derived from (seed, group_id, sample number). So what is sampled depends on
the weights, the prompt and the seed, but not on the other prompts of the batch.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primecli.errors import PrimecliError
from primecli.generation.engines import EngineOptions, Policy, Request, Sample, SampledGroups, SamplingParams
from primecli.generation.engines.decoding import Decoding, avoid_key_copies
from primecli.generation.engines.probe import plan_decoding
from primecli.generation.engines.stopping import NO_STOP_TEXTS, StopTexts, stop_texts
from primecli.models.device import (
    Placement,
    free_device_memory,
    reporting_memory,
    resolve_placement,
    set_threads,
)
from primecli.models.loading import load_model

# When this share of a batch or less is still running, its ended rows are removed from the key-value cache. That copies
# the rest of the cache, so it waits until a quarter of the rows have ended, which are computed in vain until then.
COMPACT_AT = 0.75


def open_engine(policy: Policy, options: EngineOptions) -> HfEngine:
    """Loads the policy's weights into this process."""
    set_threads(options.threads)
    placement = resolve_placement(options.device, options.dtype)
    model = load_model(policy.directory, placement)
    return HfEngine(
        model,
        placement,
        stop_ids=policy.stop_ids,
        micro_batch_tokens=options.micro_batch_tokens,
        stop_texts=stop_texts(policy),
    )


@dataclass(frozen=True, slots=True)
class BatchPiece:
    """Some samples of one request; a batch is made of such pieces.

    number: the request's number.
    first: its first sample in the piece, from 0.
    last: the sample after the last.
    """

    number: int
    first: int
    last: int


class HfEngine:
    """Samples from a transformers model.

    micro_batch_tokens: tokens that the key-value cache of a batch may hold, prompts and full-length responses
    together; a single response may need more. compact_at: the share of a batch still running at which its ended rows
    are removed; 0 keeps them to the end. stop_texts: what finds the texts that end responses. Prints a line on stderr
    where the model allows only a slow way to decode; raises PrimecliError where it allows none (`plan_decoding`).
    """

    def __init__(
        self,
        model: Any,
        placement: Placement,
        *,
        stop_ids: Sequence[int],
        micro_batch_tokens: int,
        compact_at: float = COMPACT_AT,
        stop_texts: StopTexts = NO_STOP_TEXTS,
    ) -> None:
        avoid_key_copies(model)
        self.plan = plan_decoding(model, placement)
        if slower := self.plan.slower():
            print(f"primecli: {type(model).__name__} is slower to sample from: {slower}", file=sys.stderr, flush=True)
        self.model = model
        self.placement = placement
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=placement.device)
        self.micro_batch_tokens = micro_batch_tokens
        self.compact_at = compact_at
        self.stop_texts = stop_texts

    def sample(self, requests: Sequence[Request], params: SamplingParams, *, tick: Callable[[], None]) -> SampledGroups:
        """Yields each request's index and samples: shard by shard, and from the longest prompts to the shortest."""
        begun: dict[int, list[Sample]] = {}
        for batch in self.batches(requests, params):
            with torch.inference_mode(), reporting_memory():
                sampled = self._sample_batch([requests[piece.number] for piece in batch], batch, params, tick)
            for piece, samples in zip(batch, sampled, strict=True):
                group = begun.setdefault(piece.number, [])
                group += samples
                if len(group) == params.n:
                    yield piece.number, begun.pop(piece.number)

    def confirm(self) -> None:
        """Does nothing: the weights are in this process, and nothing changes them."""

    def close(self) -> None:
        """Releases the model, and its GPU memory."""
        self.model = None
        free_device_memory(self.placement.device)

    def batches(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[BatchPiece]]:
        """Batches within the budget. None spans two shards, so a shard does not depend on which others are made too."""
        order = sorted(
            range(len(requests)), key=lambda number: (requests[number].shard, -len(requests[number].prompt_ids), number)
        )
        batch: list[BatchPiece] = []
        rows = fit = length = 0
        shard: int | None = None
        for number in order:
            for piece in self._pieces(number, len(requests[number].prompt_ids), params):
                size, prompt = piece.last - piece.first, len(requests[number].prompt_ids)
                apart = self.plan.prefill == "apart" and prompt != length
                if batch and (rows + size > fit or requests[number].shard != shard or apart):
                    yield batch
                    batch, rows = [], 0
                if not batch:
                    shard, length, fit = requests[number].shard, prompt, self._fit(prompt, params)
                batch.append(piece)
                rows += size
        if batch:
            yield batch

    def _fit(self, prompt: int, params: SamplingParams) -> int:
        if self.plan.prefill == "alone":
            return 1
        return max(1, self.micro_batch_tokens // (prompt + params.max_tokens))

    def _pieces(self, number: int, prompt: int, params: SamplingParams) -> Iterator[BatchPiece]:
        size = min(params.n, self._fit(prompt, params))
        for first in range(0, params.n, size):
            yield BatchPiece(number, first, min(first + size, params.n))

    def _sample_batch(
        self, requests: list[Request], batch: list[BatchPiece], params: SamplingParams, tick: Callable[[], None]
    ) -> list[list[Sample]]:
        """The samples of each piece; `requests` are those of the pieces.

        Below, B is the number of samples and R the number of rows that the model still computes: all that have not
        ended, and those that have ended but are not worth removing from the key-value cache yet.
        """
        sizes = [piece.last - piece.first for piece in batch]
        total = sum(sizes)  # B
        uniforms = _batch_uniforms(requests, batch, params)  # (B, max_tokens) float64, on the CPU
        tokens = torch.zeros(total, params.max_tokens, dtype=torch.int64)
        logprobs = torch.zeros(total, params.max_tokens, dtype=torch.float32)
        lengths = np.zeros(total, dtype=np.int64)  # (B,): tokens sampled so far
        stopped = np.zeros(total, dtype=bool)  # (B,): whether a stop token or a stop text was sampled
        alive = torch.arange(total)  # (R,): the sample that each row of the model's batch belongs to
        state = Decoding(self.model, self.placement, self.plan, [request.prompt_ids for request in requests], sizes)
        for step in range(params.max_tokens):
            tick()
            # state.logits is (R, V); chosen (R,) int64 and its log-probabilities (R,) stay on the device
            chosen, chosen_logprobs = draw(state.logits, uniforms[alive, step].to(self.placement.device), params)
            ended = torch.isin(chosen, self.stop_ids).cpu()  # (R,)
            active = ~torch.from_numpy(stopped[alive.numpy()])  # (R,): not ended before this step
            growing = alive[active]  # the samples that this step's tokens belong to, at most R
            values = chosen_logprobs.float().cpu()[active]
            if not values.isfinite().all():
                lost = int(growing[int(values.isfinite().logical_not().nonzero()[0])])
                request = requests[int(np.searchsorted(np.cumsum(sizes), lost, side="right"))]
                raise self._not_finite(request.group_id, step)
            tokens[growing, step] = chosen.cpu()[active]
            logprobs[growing, step] = values
            lengths[growing.numpy()] = step + 1
            stopped[alive[active & ended].numpy()] = True
            if self.stop_texts.texts:
                for row in growing.tolist():
                    stopped[row] |= self.stop_texts.completed(tokens[row, : step + 1].numpy())
            running = ~torch.from_numpy(stopped[alive.numpy()])  # (R,): not ended after this step either
            if not running.any() or step + 1 == params.max_tokens:
                break
            enough = running.float().mean() <= self.compact_at  # rows have ended to pay for copying the cache
            if enough and self.plan.drops_rows:
                state.keep(running.nonzero().squeeze(-1))
                chosen, alive = chosen[running.to(chosen.device)], alive[running]  # R shrinks
            state.advance(chosen)  # ended rows that are still there get a token too, which is never recorded
        samples = [
            Sample(
                tokens[row, : lengths[row]].numpy().astype(np.int32),
                logprobs[row, : lengths[row]].numpy().copy(),
                "stop" if stopped[row] else "length",
            )
            for row in range(total)
        ]
        ends = np.cumsum(sizes)
        return [samples[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def _not_finite(self, group_id: str, step: int) -> PrimecliError:
        return PrimecliError(
            f"the model's logits are not finite after {step} tokens of a response to the prompt {group_id}",
            "the weights are damaged or overflow"
            + ("" if self.placement.dtype == torch.float32 else "; --dtype float32 tells which"),
        )


def _batch_uniforms(requests: list[Request], batch: list[BatchPiece], params: SamplingParams) -> Tensor:
    """The random numbers of every sample of a batch, one row each: (B, max_tokens) float64."""
    rows = [
        _uniforms(request, sample, params)
        for request, piece in zip(requests, batch, strict=True)
        for sample in range(piece.first, piece.last)
    ]
    return torch.from_numpy(np.stack(rows))


def _uniforms(request: Request, sample: int, params: SamplingParams) -> np.ndarray:
    """The random numbers of a sample, uniform in [0, 1), one per token: (max_tokens,) float64."""
    digest = hashlib.sha256(f"{params.seed}\0{request.group_id}\0{sample}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(params.max_tokens)


def sampling_logprobs(logits: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities of the distribution that is sampled from: temperature first, then top-k, then top-p.

    The token at which the cumulative probability crosses top_p is kept. logits: (B, V). Returns (B, V) float32, nats;
    -inf where truncated.
    """
    scaled = logits.float() / params.temperature  # (B, V)
    if params.top_k:
        kth = scaled.topk(min(params.top_k, scaled.shape[-1]), dim=-1).values[:, -1:]  # (B, 1)
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    if params.top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True)  # (B, V), best token first
        probability = ordered.softmax(-1)
        mass_above = probability.cumsum(-1) - probability  # of the tokens ranked higher
        drop = torch.zeros_like(mass_above, dtype=torch.bool).scatter(-1, order, mass_above >= params.top_p)
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled.log_softmax(-1)


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Samples one token per row, by inverting its cumulative distribution.

    logits: (B, V). uniforms: (B,) float64 in [0, 1). Returns tokens (B,) int64 and their log-probabilities (B,), nats,
    which are 0 for greedy sampling; where logits are not finite, they are NaN.
    """
    if params.temperature == 0:
        best = logits.argmax(-1)  # of a NaN, where there is one
        return best, logits.gather(-1, best[:, None]).squeeze(-1).float() * 0
    logprobs = sampling_logprobs(logits, params)
    cumulative = logprobs.double().exp().cumsum(-1)  # (B, V)
    target = (uniforms * cumulative[:, -1]).unsqueeze(-1)  # (B, 1); the last sum is 1 only up to rounding
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)  # beyond the last token where the logits are NaN
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
