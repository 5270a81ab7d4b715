"""Sampling with transformers: batched, with a key-value cache, finished rows dropped from the batch.

Each response has its own random numbers, made from (seed, group_id, sample number). So what is sampled
depends on the weights, the prompt and the seed, not on which prompts stand in the same batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primecli.engines import Request, Sample, SamplingParams
from primecli.models import Placement, reporting_memory

COMPACT_AT = 0.75  # share of a batch still running at which the finished rows leave the cache


class HfEngine:
    """Samples from a transformers model.

    token_budget: tokens of key-value cache that a batch may come to, prompts and responses at full length.
    """

    def __init__(self, model: Any, place: Placement, *, stop_ids: Sequence[int], token_budget: int) -> None:
        self.model = model
        self.place = place
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=place.device)
        self.token_budget = token_budget

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, tick: Callable[[], None]
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yields each request's number and samples, from the longest prompts to the shortest."""
        for batch in self._batches(requests, params):
            with torch.inference_mode(), reporting_memory():
                groups = self._sample_batch([requests[number] for number in batch], params, tick)
            yield from zip(batch, groups, strict=True)

    def _batches(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[int]]:
        order = sorted(range(len(requests)), key=lambda number: (-len(requests[number].prompt_ids), number))
        batch: list[int] = []
        for number in order:
            longest = len(requests[batch[0] if batch else number].prompt_ids) + params.max_tokens
            if batch and longest * params.n * (len(batch) + 1) > self.token_budget:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _sample_batch(
        self, requests: list[Request], params: SamplingParams, tick: Callable[[], None]
    ) -> list[list[Sample]]:
        rows = len(requests) * params.n
        uniforms = torch.from_numpy(np.stack([row for request in requests for row in _uniforms(request, params)]))
        tokens = torch.zeros(rows, params.max_tokens, dtype=torch.int64)
        logprobs = torch.zeros(rows, params.max_tokens, dtype=torch.float32)
        lengths = np.zeros(rows, dtype=np.int64)
        stopped = np.zeros(rows, dtype=bool)
        alive = torch.arange(rows)  # the row of each place in the running batch
        state = _Decoding(self.model, self.place, requests, params.n)
        for step in range(params.max_tokens):
            tick()
            chosen, chosen_logprobs = draw(state.logits, uniforms[alive, step].to(self.place.device), params)
            ended = torch.isin(chosen, self.stop_ids).cpu()
            active = ~torch.from_numpy(stopped[alive.numpy()])
            rows_now = alive[active]
            tokens[rows_now, step] = chosen.cpu()[active]
            logprobs[rows_now, step] = chosen_logprobs.float().cpu()[active]
            lengths[rows_now.numpy()] = step + 1
            stopped[alive[active & ended].numpy()] = True
            running = ~torch.from_numpy(stopped[alive.numpy()])
            if not running.any() or step + 1 == params.max_tokens:
                break
            if running.float().mean() <= COMPACT_AT:
                state.keep(running.nonzero().squeeze(-1))
                chosen, alive = chosen[running.to(chosen.device)], alive[running]
            state.advance(chosen)
        samples = [
            Sample(
                tokens[row, : lengths[row]].numpy().astype(np.int32),
                logprobs[row, : lengths[row]].numpy().copy(),
                "stop" if stopped[row] else "length",
            )
            for row in range(rows)
        ]
        return [samples[start : start + params.n] for start in range(0, rows, params.n)]


class _Decoding:
    """A running batch: its cache, its mask and the logits of the next token. Prompts are filled at the left."""

    def __init__(self, model: Any, place: Placement, requests: list[Request], n: int) -> None:
        self.model, self.place = model, place
        width = max(len(request.prompt_ids) for request in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.int64)
        mask = torch.zeros(len(requests), width, dtype=torch.int64)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, width - len(request.prompt_ids) :] = 1
        mask = mask.to(place.device)
        self.positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, T)
        output = self._forward(ids.to(place.device), mask, self.positions, None)
        # the n samples of a prompt share its forward pass
        self.cache = output.past_key_values
        self.cache.batch_repeat_interleave(n)
        self.logits = output.logits[:, -1].repeat_interleave(n, dim=0)  # (B * n, V)
        self.mask = mask.repeat_interleave(n, dim=0)
        self.positions = self.positions[:, -1:].repeat_interleave(n, dim=0)  # (B * n, 1)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Any:
        with self.place.autocast():
            return self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )

    def keep(self, places: Tensor) -> None:
        """Drops all other places of the batch."""
        places = places.to(self.place.device)
        self.cache.batch_select_indices(places)
        self.mask, self.positions = self.mask[places], self.positions[places]

    def advance(self, tokens: Tensor) -> None:
        """Appends one token to each place: tokens (B,)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions + 1
        output = self._forward(tokens[:, None], self.mask, self.positions, self.cache)
        self.cache = output.past_key_values
        self.logits = output.logits[:, -1]


def _uniforms(request: Request, params: SamplingParams) -> list[np.ndarray]:
    """One uniform number in [0, 1) for each token of each sample: n arrays of (max_tokens,) float64."""
    draws = []
    for sample in range(params.n):
        digest = hashlib.sha256(f"{params.seed}\0{request.group_id}\0{sample}".encode()).digest()
        key = int.from_bytes(digest[:16], "little")
        draws.append(np.random.Generator(np.random.Philox(key=key)).random(params.max_tokens))
    return draws


def sampling_logprobs(logits: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities of the distribution that is sampled from: temperature, then top-k, then top-p.

    logits: (B, V). Returns (B, V) float32, nats; -inf where truncated. The token that crosses top_p stays in.
    """
    scaled = logits.float() / params.temperature
    if params.top_k:
        kth = scaled.topk(min(params.top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    if params.top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # mass of the tokens ranked above
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        scaled = scaled.masked_fill(drop, -torch.inf)
    return scaled.log_softmax(-1)


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse of its cumulative distribution.

    logits: (B, V); uniforms: (B,) float64 in [0, 1). Returns tokens (B,) int64 and their log-probabilities
    (B,), nats. Greedy sampling is certain: log-probability 0.
    """
    if params.temperature == 0:
        best = logits.argmax(-1)
        return best, torch.zeros_like(best, dtype=torch.float32)
    logprobs = sampling_logprobs(logits, params)
    cumulative = logprobs.double().exp().cumsum(-1)  # (B, V)
    target = (uniforms * cumulative[:, -1]).unsqueeze(-1)
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response: those of the generation configuration, and the tokenizer's."""
    found = model.generation_config.eos_token_id
    ids = set(found if isinstance(found, list) else [found])
    ids.add(tokenizer.eos_token_id)
    return sorted(token for token in ids if token is not None)
