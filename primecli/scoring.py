"""Numbers for every response token of a batch, by one model: log-probabilities or values, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.models import Placement, reporting_memory

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from primecli.core.logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts with their responses, as token ids.

    prompt_ids, response_ids: one int32 array a row. temperature: (B,), by which logits are divided.
    """

    prompt_ids: Sequence[np.ndarray]
    response_ids: Sequence[np.ndarray]
    temperature: np.ndarray | None = None

    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and response."""
        return [
            len(prompt) + len(response) for prompt, response in zip(self.prompt_ids, self.response_ids, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some rows of `Sequences`, filled at the right.

    ids: (B, T) int64. places: (N,), where among the B * T the states stand that the response tokens come from: a
    token's state is that of the place before it. targets: (N,) int64, the response tokens. heat: (N,) or None.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    heat: Tensor | None


def _batch(model: Any, place: Placement, sequences: Sequences, rows: Sequence[int]) -> _Batch:
    import numpy as np
    import torch

    prompts = [sequences.prompt_ids[row] for row in rows]
    responses = [sequences.response_ids[row] for row in rows]
    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    words = model.get_input_embeddings().num_embeddings
    for row, tokens in zip([*rows, *rows], [*prompts, *responses], strict=True):
        if tokens.min() < 0 or tokens.max() >= words:
            raise InputError(
                f"row {row} holds the token id {tokens.max() if tokens.max() >= words else tokens.min()}, and "
                f"{type(model).__name__} has {words} tokens",
                "the rollouts are of a model with another tokenizer",
            )
    ids = np.zeros((len(rows), width), dtype=np.int64)
    places = []
    for place_in_batch, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[place_in_batch, : len(prompt)] = prompt
        ids[place_in_batch, len(prompt) : len(prompt) + len(response)] = response
        places.append(place_in_batch * width + np.arange(len(prompt) - 1, len(prompt) + len(response) - 1))
    heat = None
    if sequences.temperature is not None:
        per_row = np.repeat(sequences.temperature[list(rows)], [len(response) for response in responses])
        heat = torch.from_numpy(per_row).to(place.device)
    return _Batch(
        torch.from_numpy(ids).to(place.device),
        torch.from_numpy(np.concatenate(places)).to(place.device),
        torch.from_numpy(np.concatenate(responses).astype(np.int64)).to(place.device),
        heat,
    )


def _states(model: Any, batch: _Batch) -> Tensor:
    """(N, D): the last hidden states that the response tokens come from. A causal model's do not see the filling."""
    hidden = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    states: Tensor = hidden.reshape(-1, hidden.shape[-1])[batch.places]
    return states


def sequence_logprobs(
    model: Any, place: Placement, sequences: Sequences, rows: Sequence[int], *, with_entropy: bool = False
) -> TokenLogprobs:
    """Log-probability (and entropy) of every response token of some rows, in one forward pass.

    Logits are made for response tokens only, and a chunk at a time. Each is (N,), nats, the rows one after another.
    """
    from primecli.core.logprobs import token_logprobs

    batch = _batch(model, place, sequences, rows)
    with place.autocast():
        states = _states(model, batch)
        head = model.get_output_embeddings()
    return token_logprobs(
        states, head.weight, batch.targets, bias=head.bias, temperature=batch.heat, with_entropy=with_entropy
    )


def sequence_values(model: Any, place: Placement, sequences: Sequences, rows: Sequence[int]) -> Tensor:
    """What a critic expects before every response token of some rows, in one forward pass: (N,) float32."""
    batch = _batch(model, place, sequences, rows)
    with place.autocast():
        states = _states(model, batch)
    values: Tensor = model.score(states.to(model.score.weight.dtype)).squeeze(-1).float()
    return values


def _logprobs_only(model: Any, place: Placement, sequences: Sequences, rows: Sequence[int]) -> Tensor:
    return sequence_logprobs(model, place, sequences, rows).logprobs


def score(
    model: Any,
    place: Placement,
    sequences: Sequences,
    *,
    token_budget: int,
    done: Callable[[int], None] = lambda rows: None,
    per_token: Callable[[Any, Placement, Sequences, Sequence[int]], Tensor] | None = None,
) -> np.ndarray:
    """A number for every response token, without gradient: (N,) float32, rows one after another.

    It is the token's log-probability, unless `per_token` gives another. token_budget: tokens of a micro-batch,
    filling included. `done` hears how many rows were finished.
    """
    import numpy as np
    import torch

    from primecli.core.ragged import micro_batches

    lengths = [len(response) for response in sequences.response_ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty(starts[-1], dtype=np.float32)
    with torch.inference_mode(), reporting_memory():
        for rows in micro_batches(sequences.lengths(), token_budget):
            found = (per_token or _logprobs_only)(model, place, sequences, rows)
            pieces = torch.split(found.float().cpu(), [lengths[row] for row in rows])
            for row, piece in zip(rows, pieces, strict=True):
                values[starts[row] : starts[row + 1]] = piece.numpy()
            done(len(rows))
    return values


def peak_memory_gib(place: Placement) -> float:
    """The most memory that this process has held so far, GiB: of the GPU where it computes there, else of the CPU."""
    import resource

    import torch

    if place.device.type == "cuda":
        return torch.cuda.max_memory_allocated(place.device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
