"""Numbers for every response token of a batch, by one model: log-probabilities or values, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, UsageError
from primecli.models.device import Placement, reporting_memory
from primecli.shards.rollouts import Sequences

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from primecli.core.logprobs import TokenLogprobs
    from primecli.models.packed_attention import Segment

PACKING_PAYS = 0.15  # of the padded tokens, saved: about what attention by segments costs small models on the CPU


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences for one forward pass.

    rows: their indices in `Sequences`.
    packed: whether they are put end to end in a single row, without padding, with a prompt that they share only once.
    """

    rows: list[int]
    packed: bool = False

    def tokens(self, sequences: Sequences) -> int:
        """Tokens that its forward pass computes, filling included."""
        if not self.packed:
            return len(self.rows) * self.longest(sequences)
        prompts = {sequences.prompt_ids[row].tobytes(): len(sequences.prompt_ids[row]) for row in self.rows}
        return sum(prompts.values()) + sum(len(sequences.response_ids[row]) for row in self.rows)

    def longest(self, sequences: Sequences) -> int:
        """Tokens of its longest row, prompt and response."""
        return max(len(sequences.prompt_ids[row]) + len(sequences.response_ids[row]) for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A batch in the form that the model takes: B rows of T tokens, of which N are response tokens.

    ids: (B, T) int64, padded on the right; (1, T) where the batch is packed.
    places: (N,) int64, where among the B * T hidden states those are that predict the response tokens: each is the
        state of the token before.
    targets: (N,) int64, the response tokens.
    heat: (N,) float32, the temperature that each token was sampled with; None for 1.
    positions: (1, T) int64, each token's position in its own sequence; None where the batch is not packed.
    segments: what the tokens of a packed row see; None where the batch is not packed.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    heat: Tensor | None
    positions: Tensor | None = None
    segments: list[Segment] | None = None


def plan(
    model: Any, place: Placement, sequences: Sequences, rows: Sequence[int], micro_batch_tokens: int
) -> list[Batch]:
    """All of `rows`, in batches of no more than `micro_batch_tokens` tokens, the longest row in the first.

    Packed where `place.packing` is `on`, and with `auto` on the CPU where that saves `PACKING_PAYS` of the tokens and
    the model computes the same. Raises UsageError where packing is `on` and the model cannot.
    """
    from primecli.core.ragged import micro_batches, packed_batches

    prompts = [sequences.prompt_ids[row] for row in rows]
    responses = [len(sequences.response_ids[row]) for row in rows]
    lengths = [len(prompt) + response for prompt, response in zip(prompts, responses, strict=True)]
    padded = [Batch([rows[index] for index in chosen]) for chosen in micro_batches(lengths, micro_batch_tokens)]
    if place.packing == "off" or (place.packing == "auto" and place.device.type != "cpu"):
        return padded
    numbers: dict[bytes, int] = {}
    same = [numbers.setdefault(prompt.tobytes(), len(numbers)) for prompt in prompts]
    chosen = packed_batches(same, [len(prompt) for prompt in prompts], responses, micro_batch_tokens)
    packed = [Batch([rows[index] for index in indices], packed=True) for indices in chosen]
    if place.packing == "auto":
        paid = sum(batch.tokens(sequences) for batch in padded)
        needed = sum(batch.tokens(sequences) for batch in packed)
        if needed > (1 - PACKING_PAYS) * paid:
            return padded
    from primecli.models.packed_attention import can_pack

    with place.autocast():
        possible = can_pack(model)
    if not possible:
        if place.packing == "on":
            raise UsageError(
                f"{type(model).__name__} computes something else for packed sequences", "leave --packing at auto"
            )
        return padded
    return packed


def _inputs(model: Any, place: Placement, sequences: Sequences, batch: Batch) -> _Inputs:
    import numpy as np
    import torch

    rows = batch.rows
    prompts = [sequences.prompt_ids[row] for row in rows]
    responses = [sequences.response_ids[row] for row in rows]
    words = model.get_input_embeddings().num_embeddings
    for row, tokens in zip([*rows, *rows], [*prompts, *responses], strict=True):
        if tokens.min() < 0 or tokens.max() >= words:
            raise InputError(
                f"row {row} holds the token id {tokens.max() if tokens.max() >= words else tokens.min()}, and "
                f"{type(model).__name__} has {words} tokens",
                "the rollouts are of a model with another tokenizer",
            )
    heat = None
    if sequences.temperature is not None:
        per_row = np.repeat(sequences.temperature[rows], [len(response) for response in responses])
        heat = torch.from_numpy(per_row).to(place.device)
    targets = torch.from_numpy(np.concatenate(responses).astype(np.int64)).to(place.device)
    if batch.packed:
        ids, positions, places, segments = _packed(prompts, responses)
        moved = [torch.from_numpy(array).to(place.device) for array in (ids[None], places, positions[None])]
        return _Inputs(moved[0], moved[1], targets, heat, moved[2], segments)
    ids, places = _padded(prompts, responses)
    return _Inputs(torch.from_numpy(ids).to(place.device), torch.from_numpy(places).to(place.device), targets, heat)


def _padded(prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ids (B, T), places (N,)."""
    import numpy as np

    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    places = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(response)] = response
        places.append(row * width + np.arange(len(prompt) - 1, len(prompt) + len(response) - 1))
    return ids, np.concatenate(places)


def _packed(
    prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Segment]]:
    """ids (T,), positions (T,), places (N,), segments. The last token of a response predicts nothing: left out."""
    import numpy as np

    from primecli.models.packed_attention import Segment

    counts = Counter(prompt.tobytes() for prompt in prompts)
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    places: list[np.ndarray] = []
    segments: list[Segment] = []
    shared: dict[bytes, tuple[int, int]] = {}  # a prompt's segment, and the place behind it
    end = 0

    def append(tokens: np.ndarray, first: int, prefix: int | None = None) -> int:
        nonlocal end
        if len(tokens):
            ids.append(tokens)
            positions.append(np.arange(first, first + len(tokens)))
            segments.append(Segment(len(tokens), prefix))
        end += len(tokens)
        return end

    for prompt, response in zip(prompts, responses, strict=True):
        key = prompt.tobytes()
        if counts[key] == 1:
            stop = append(np.concatenate([prompt, response[:-1]]), 0)
            places.append(np.arange(stop - len(response), stop))
            continue
        if key not in shared:
            shared[key] = (len(segments), append(prompt, 0))
        number, behind = shared[key]
        stop = append(response[:-1], len(prompt), number)
        places.append(np.concatenate([[behind - 1], np.arange(stop - len(response) + 1, stop)]))
    return np.concatenate(ids).astype(np.int64), np.concatenate(positions), np.concatenate(places), segments


def _states(model: Any, inputs: _Inputs) -> Tensor:
    """(N, D): the last hidden states that the response tokens come from. A causal model's do not see the filling."""
    if inputs.segments is None or inputs.positions is None:
        hidden = model.base_model(input_ids=inputs.ids, use_cache=False).last_hidden_state
    else:
        from primecli.models.packed_attention import hidden_states

        hidden = hidden_states(model, inputs.ids, inputs.positions, inputs.segments)
    states: Tensor = hidden.reshape(-1, hidden.shape[-1])[inputs.places]
    return states


def sequence_logprobs(
    model: Any, place: Placement, sequences: Sequences, batch: Batch, *, with_entropy: bool = False
) -> TokenLogprobs:
    """Log-probability (and entropy) of every response token of a batch, in one forward pass.

    Logits are made for response tokens only, and a chunk at a time. Each is (N,), nats, the rows one after another.
    """
    from primecli.core.logprobs import token_logprobs

    inputs = _inputs(model, place, sequences, batch)
    with place.autocast():
        states = _states(model, inputs)
        head = model.get_output_embeddings()
    return token_logprobs(
        place.for_head(states),
        head.weight,
        inputs.targets,
        bias=head.bias,
        temperature=inputs.heat,
        with_entropy=with_entropy,
    )


def sequence_values(model: Any, place: Placement, sequences: Sequences, batch: Batch) -> Tensor:
    """What a critic expects before every response token of a batch, in one forward pass: (N,) float32."""
    inputs = _inputs(model, place, sequences, batch)
    with place.autocast():
        states = _states(model, inputs)
    values: Tensor = model.score(states.to(model.score.weight.dtype)).squeeze(-1).float()
    return values


def _logprobs_only(model: Any, place: Placement, sequences: Sequences, batch: Batch) -> Tensor:
    return sequence_logprobs(model, place, sequences, batch).logprobs


def score(
    model: Any,
    place: Placement,
    sequences: Sequences,
    *,
    micro_batch_tokens: int,
    done: Callable[[int], None] = lambda rows: None,
    per_token: Callable[[Any, Placement, Sequences, Batch], Tensor] | None = None,
) -> np.ndarray:
    """A number for every response token, without gradient: (N,) float32, rows one after another.

    It is the token's log-probability, unless `per_token` gives another. micro_batch_tokens: tokens of a micro-batch,
    filling included. `done` hears how many rows were finished.
    """
    import numpy as np
    import torch

    lengths = [len(response) for response in sequences.response_ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty(starts[-1], dtype=np.float32)
    with torch.inference_mode(), reporting_memory():
        for batch in plan(model, place, sequences, range(len(lengths)), micro_batch_tokens):
            found = (per_token or _logprobs_only)(model, place, sequences, batch)
            pieces = torch.split(found.float().cpu(), [lengths[row] for row in batch.rows])
            for row, piece in zip(batch.rows, pieces, strict=True):
                values[starts[row] : starts[row + 1]] = piece.numpy()
            done(len(batch.rows))
    return values
