"""A model's log-probability or value of every response token, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError, UsageError
from primecli.models.body import body_of
from primecli.models.device import Placement, reporting_memory
from primecli.shards.rollouts import Sequences

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from primecli.core.logprobs import TokenLogprobs
    from primecli.models.attention import Segment

# Share of the padded tokens that packing must save: about what attention by segments costs small models on the CPU.
PACKING_PAYS = 0.15


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences for one forward pass.

    rows: their indices in `Sequences`.
    packed: whether they are put end to end in a single row, without padding, with a prompt that they share only once.
    """

    rows: list[int]
    packed: bool = False

    def tokens(self, sequences: Sequences) -> int:
        """Tokens that its forward pass computes, padding included."""
        if not self.packed:
            return len(self.rows) * self.longest(sequences)
        prompts = {sequences.prompt_ids[row].tobytes(): len(sequences.prompt_ids[row]) for row in self.rows}
        return sum(prompts.values()) + sum(len(sequences.response_ids[row]) for row in self.rows)

    def longest(self, sequences: Sequences) -> int:
        """Tokens of its longest row, prompt and response together."""
        return max(len(sequences.prompt_ids[row]) + len(sequences.response_ids[row]) for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A batch in the form that the model takes: B rows of T tokens, of which N are response tokens.

    ids: (B, T) int64, padded on the right; (1, T) where the batch is packed.
    state_indices: (N,) int64, which of the B * T hidden states predict the response tokens: each is the state of the
        token before.
    targets: (N,) int64, the response tokens.
    temperature: (N,) float32, the temperature that each token was sampled with; None for 1.
    positions: (1, T) int64, each token's position in its own sequence; None where the batch is not packed.
    segments: what the tokens of a packed row see; None where the batch is not packed.
    """

    ids: Tensor
    state_indices: Tensor
    targets: Tensor
    temperature: Tensor | None
    positions: Tensor | None = None
    segments: list[Segment] | None = None


def plan(
    model: Any, placement: Placement, sequences: Sequences, rows: Sequence[int], micro_batch_tokens: int
) -> list[Batch]:
    """Batches of at most `micro_batch_tokens` tokens that cover all of `rows`; the longest row is in the first.

    They are packed where `placement.packing` is `on`; with `auto`, on the CPU, if that saves `PACKING_PAYS` of the
    tokens and the model can be packed. Raises UsageError where packing is `on` and the model cannot be packed.
    """
    from primecli.core.ragged import micro_batches, packed_batches

    prompts = [sequences.prompt_ids[row] for row in rows]
    responses = [len(sequences.response_ids[row]) for row in rows]
    lengths = [len(prompt) + response for prompt, response in zip(prompts, responses, strict=True)]
    padded = [Batch([rows[index] for index in chosen]) for chosen in micro_batches(lengths, micro_batch_tokens)]
    if not placement.may_pack:
        return padded
    numbers: dict[bytes, int] = {}
    same = [numbers.setdefault(prompt.tobytes(), len(numbers)) for prompt in prompts]
    chosen = packed_batches(same, [len(prompt) for prompt in prompts], responses, micro_batch_tokens)
    packed = [Batch([rows[index] for index in indices], packed=True) for indices in chosen]
    if placement.packing == "auto":
        padded_tokens = sum(batch.tokens(sequences) for batch in padded)
        packed_tokens = sum(batch.tokens(sequences) for batch in packed)
        if packed_tokens > (1 - PACKING_PAYS) * padded_tokens:
            return padded
    found = packing_obstacle(model, placement)
    if found is not None:
        if placement.packing == "on":
            raise UsageError(f"{type(model).__name__} cannot be packed: {found}", "use --packing auto")
        return padded
    return packed


def packing_obstacle(model: Any, placement: Placement) -> str | None:
    """`packed_attention.obstacle` of a model that may be spread over ranks; all of them have to call it."""
    from primecli.models.packed_attention import obstacle
    from primecli.parallel.sharding import computing

    with placement.autocast():
        return computing(model, lambda: obstacle(model))


def _inputs(model: Any, placement: Placement, sequences: Sequences, batch: Batch) -> _Inputs:
    import numpy as np
    import torch

    rows = batch.rows
    prompts = [sequences.prompt_ids[row] for row in rows]
    responses = [sequences.response_ids[row] for row in rows]
    vocabulary_size = model.get_input_embeddings().num_embeddings
    for row, tokens in zip([*rows, *rows], [*prompts, *responses], strict=True):
        if tokens.min() < 0 or tokens.max() >= vocabulary_size:
            unknown = tokens.max() if tokens.max() >= vocabulary_size else tokens.min()
            raise InputError(
                f"row {row} holds the token id {unknown}, and {type(model).__name__} has {vocabulary_size} tokens",
                "the rollouts come from a model with another tokenizer",
            )
    temperature = None
    if sequences.temperature is not None:
        per_row = np.repeat(sequences.temperature[rows], [len(response) for response in responses])
        temperature = torch.from_numpy(per_row).to(placement.device)
    targets = torch.from_numpy(np.concatenate(responses).astype(np.int64)).to(placement.device)
    if batch.packed:
        ids, positions, state_indices, segments = _packed(prompts, responses)
        moved = [torch.from_numpy(array).to(placement.device) for array in (ids[None], state_indices, positions[None])]
        return _Inputs(moved[0], moved[1], targets, temperature, moved[2], segments)
    ids, state_indices = _padded(prompts, responses)
    moved = [torch.from_numpy(array).to(placement.device) for array in (ids, state_indices)]
    return _Inputs(moved[0], moved[1], targets, temperature)


def _padded(prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The padded rows: ids (B, T), state_indices (N,)."""
    import numpy as np

    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    state_indices = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(response)] = response
        state_indices.append(row * width + np.arange(len(prompt) - 1, len(prompt) + len(response) - 1))
    return ids, np.concatenate(state_indices)


def _packed(
    prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Segment]]:
    """The packed row: ids (T,), positions (T,), state_indices (N,), segments.

    The last token of each response is left out, since it predicts nothing.
    """
    import numpy as np

    from primecli.models.attention import Segment

    counts = Counter(prompt.tobytes() for prompt in prompts)
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    state_indices: list[np.ndarray] = []
    segments: list[Segment] = []
    shared: dict[bytes, tuple[int, int]] = {}  # a prompt's segment, and the index in the row after it
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
            state_indices.append(np.arange(stop - len(response), stop))
            continue
        if key not in shared:
            shared[key] = (len(segments), append(prompt, 0))
        number, prompt_end = shared[key]
        stop = append(response[:-1], len(prompt), number)
        state_indices.append(np.concatenate([[prompt_end - 1], np.arange(stop - len(response) + 1, stop)]))
    return np.concatenate(ids).astype(np.int64), np.concatenate(positions), np.concatenate(state_indices), segments


def _states(model: Any, inputs: _Inputs) -> Tensor:
    """(N, D): the last hidden states that predict the response tokens, which causal attention keeps free of padding."""
    if inputs.segments is None or inputs.positions is None:
        hidden = body_of(model)(input_ids=inputs.ids, use_cache=False).last_hidden_state
    else:
        from primecli.models.packed_attention import hidden_states

        hidden = hidden_states(model, inputs.ids, inputs.positions, inputs.segments)
    states: Tensor = hidden.reshape(-1, hidden.shape[-1])[inputs.state_indices]
    return states


def sequence_logprobs(
    model: Any, placement: Placement, sequences: Sequences, batch: Batch, *, with_entropy: bool = False
) -> TokenLogprobs:
    """Log-probability (and entropy) of every response token of a batch, in one forward pass: (N,) nats, row after row.

    Logits are computed for response tokens only, tile by tile.
    """
    from primecli.core.logprobs import token_logprobs
    from primecli.models.head import head_of
    from primecli.parallel.sharding import computing

    inputs = _inputs(model, placement, sequences, batch)

    def compute() -> TokenLogprobs:
        with placement.autocast():
            states = _states(model, inputs)
            head, found = model.get_output_embeddings(), head_of(model)
        return token_logprobs(
            placement.for_head(states if found.before == 1.0 else states * found.before),
            head.weight,
            inputs.targets,
            bias=head.bias,
            scale=found.after.scale,
            cap=found.after.cap,
            temperature=inputs.temperature,
            with_entropy=with_entropy,
        )

    return computing(model, compute)


def sequence_values(model: Any, placement: Placement, sequences: Sequences, batch: Batch) -> Tensor:
    """What a critic predicts before each response token, in one forward pass: (N,) float32, row after row."""
    from primecli.parallel.sharding import computing

    inputs = _inputs(model, placement, sequences, batch)

    def compute() -> Tensor:
        with placement.autocast():
            states = _states(model, inputs)
        values: Tensor = model.score(states.to(model.score.weight.dtype))  # (n, 1)
        return values

    return computing(model, compute).squeeze(-1).float()


def _logprobs_only(model: Any, placement: Placement, sequences: Sequences, batch: Batch) -> Tensor:
    return sequence_logprobs(model, placement, sequences, batch).logprobs


def score(
    model: Any,
    placement: Placement,
    sequences: Sequences,
    *,
    micro_batch_tokens: int,
    done: Callable[[int], None] = lambda rows: None,
    per_token: Callable[[Any, Placement, Sequences, Batch], Tensor] | None = None,
    name_row: Callable[[int], str] = "row {} of the batch".format,
) -> np.ndarray:
    """A number for every response token, without gradient: (N,) float32, row after row.

    micro_batch_tokens: tokens of a micro-batch, padding included. done: called with the number of rows that have just
    been finished, by all ranks together.
    per_token: computes the numbers of a batch, (N,); log-probabilities when None. name_row: says which row it is, for
    the message.

    Raises PrimecliError for a number that is not finite.
    """
    import numpy as np
    import torch

    from primecli.parallel.sharding import sharded

    lengths = [len(response) for response in sequences.response_ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.zeros(starts[-1], dtype=np.float32)  # of several ranks, each adds what it has computed to zeros
    per_token = per_token or _logprobs_only
    # FSDP cannot train a model whose parameters it has first gathered in inference mode
    without_gradient = torch.inference_mode() if sharded(model) is None else torch.no_grad()
    with without_gradient, reporting_memory():
        batches = plan(model, placement, sequences, range(len(lengths)), micro_batch_tokens)
        world = 1 if (found := sharded(model)) is None else found.ranks.world
        for turn, (batch, counts) in enumerate(shares(model, sequences, batches)):
            values_of_batch = per_token(model, placement, sequences, batch)
            if not counts:
                continue
            pieces = torch.split(values_of_batch.float().cpu(), [lengths[row] for row in batch.rows])
            for row, piece in zip(batch.rows, pieces, strict=True):
                if not bool(piece.isfinite().all()):
                    raise _not_finite(model, placement, name_row(row), piece)
                values[starts[row] : starts[row + 1]] = piece.numpy()
            done(sum(len(each.rows) for each in batches[turn * world : (turn + 1) * world]))
    return values if found is None else found.ranks.total(values)


def shares(model: Any, sequences: Sequences, batches: Sequence[Batch]) -> Iterator[tuple[Batch, bool]]:
    """This rank's share of the batches, each with whether it counts; all of them where the model is on one process.

    Rank r takes number r, r + W, r + 2 W, ... of W ranks. One that runs out computes the shortest row again and again,
    which does not count, because every rank has to take part in each exchange of parameters.
    """
    from primecli.parallel.sharding import sharded

    found = sharded(model)
    if found is None:
        yield from ((batch, True) for batch in batches)
        return
    rank, world = found.ranks.rank, found.ranks.world
    lengths = sequences.lengths()
    shortest = min((row for batch in batches for row in batch.rows), key=lambda row: lengths[row])
    for first in range(0, len(batches), world):
        mine = first + rank < len(batches)
        yield (batches[first + rank], True) if mine else (Batch([shortest]), False)


def _not_finite(model: Any, placement: Placement, row: str, values: Tensor) -> PrimecliError:
    value = float(values[values.isfinite().logical_not()][0])
    precision = str(placement.dtype).removeprefix("torch.")
    return PrimecliError(
        f"{row}: {type(model).__name__} in {precision} gives {value} for a response token",
        "its weights are damaged" + ("" if precision == "float32" else " or overflow: --dtype float32 tells which"),
    )
