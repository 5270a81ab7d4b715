"""Packed sequences, several in one row, each seeing only itself and its prompt; and which models can do that."""

from __future__ import annotations

import contextlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from primecli.models.attention import PACKED, Segment, Segments, register_packed
from primecli.models.body import body_of
from primecli.models.trial_tokens import spread_ids

PROBE_TOLERANCE = 1e-4  # relative, of a token's hidden state on average; seeing another sequence changes far more
HALF_TOLERANCE = 5e-2  # the same where products have 8 or 11 bits of precision
ROPE_OF_THE_LONGEST = ("dynamic", "longrope")  # kinds of RoPE that rotate each token by its row's largest position
# Kinds of layers whose reach a short test input shows: they see everything before, or pass a state on.
SHOWN_BY_A_TEST = {"full_attention", "linear_attention", "conv", "hybrid", "mlp", "moe"}

# What the probe packs: a prompt, two responses to it, and another sequence.
SEGMENTS = [Segment(4), Segment(3, prefix=0), Segment(4, prefix=0), Segment(5)]
POSITIONS = [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 0, 1, 2, 3, 4]
PROMPT, FIRST, SECOND, OTHER = slice(0, 4), slice(4, 7), slice(7, 11), slice(11, 16)

_obstacles: WeakKeyDictionary[torch.nn.Module, str | None] = WeakKeyDictionary()


def hidden_states(model: Any, ids: Tensor, positions: Tensor, segments: list[Segment]) -> Tensor:
    """(1, T, D): the last hidden states of a packed row, by a model for which `can_pack` holds.

    ids: (1, T) int64. positions: (1, T) int64, each token's position in its own sequence. segments: T tokens in total.
    """
    hidden: Tensor = body_of(model)(
        input_ids=ids, position_ids=positions, use_cache=False, segments=Segments(segments)
    ).last_hidden_state
    return hidden


def can_pack(model: Any) -> bool:
    """Whether the model computes the same for packed sequences as for each of them alone; see `obstacle`."""
    return obstacle(model) is None


def obstacle(model: Any) -> str | None:
    """What keeps the model from computing the same for packed sequences as for each of them alone; None if nothing.

    It is found out by a test on a short input: attention may be of another kind (with a bias or a cap on the scores),
    positions may be counted by the model itself, and recurrent or convolutional layers pass a state from one sequence
    on to the next. Only what a short input does not show is read from the configuration. A model that can pack keeps
    `attention.attend`, which is `sdpa` for rows that are not packed.
    """
    if model not in _obstacles:
        if not _has_whole_attention(model.config):
            _obstacles[model] = "its attention is limited to a window"
        elif not _has_fixed_positions(model):
            _obstacles[model] = "how it encodes positions depends on the longest row"
        else:
            _obstacles[model] = _probe(model)
    return _obstacles[model]


def _has_whole_attention(config: Any) -> bool:
    """Whether no layer's attention is limited to a window, which a short test input would not show."""
    config = config.get_text_config()  # models that take images too have one for their language model
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) <= SHOWN_BY_A_TEST
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return not any(windows) or getattr(config, "use_sliding_window", True) is False


def _has_fixed_positions(model: Any) -> bool:
    """Whether a position is encoded the same way in rows of any length, which a short test input would not show."""
    rope_types = [getattr(module, "rope_type", None) for module in model.modules()]
    types = {str(kind) for entry in rope_types for kind in (entry.values() if isinstance(entry, dict) else [entry])}
    return not any(name in kind for kind in types for name in ROPE_OF_THE_LONGEST)


def _probe(model: Any) -> str | None:
    """What is wrong with packed rows; if nothing is, None, and the model keeps the attention that they need."""
    if not getattr(model, "_supports_attention_backend", False):
        return "transformers cannot give it the attention of packed rows"
    register_packed()
    ids = torch.tensor(spread_ids(model.get_input_embeddings().num_embeddings, OTHER.stop), device=model.device)
    rows = [ids[:7], torch.cat([ids[PROMPT], ids[SECOND]]), ids[OTHER]]
    original = model.config._attn_implementation
    found: str | None = "its forward pass does not take packed rows"
    with torch.no_grad():
        alone = [body_of(model)(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
    model.set_attn_implementation(PACKED)
    # raised by a forward that takes no position_ids or no further arguments, and by attention of another kind
    try:
        with contextlib.suppress(TypeError):
            found = _difference(model, ids, torch.cat([alone[0], alone[1][4:], alone[2]]))
    finally:
        if found is not None:
            model.set_attn_implementation(original)
    return found


def _difference(model: Any, ids: Tensor, expected: Tensor) -> str | None:
    """How the states of the probe's packed row, (16, D), differ from `expected`; None if they do not."""
    from primecli.parallel.sharding import sharded

    with torch.no_grad():
        packed = _packed_states(model, ids)
        half = expected.dtype.itemsize == 2 or torch.is_autocast_enabled(model.device.type)
        limits = (HALF_TOLERANCE if half else PROBE_TOLERANCE) * _sizes(expected)
        leaks = "in a packed row, what it computes for a sequence depends on the sequences before it"
        # a difference may be too small to show here, and grow with other tokens: so change what must not matter
        for changed, kept in ((FIRST, [PROMPT, SECOND, OTHER]), (slice(0, 11), [OTHER])):
            others = ids.clone()
            others[changed] = others[changed].flip(0)
            again = _packed_states(model, others)
            if any(bool((_sizes(again[part] - packed[part]) > limits[part]).any()) for part in kept):
                return leaks
        if bool((_sizes(packed - expected) > limits).any()):
            return "it computes something else for packed sequences"
    # the backward pass of a model that is spread over ranks is more than a test may ask for
    return leaks if sharded(model) is None and _gradient_leaks(model, ids) else None


def _gradient_leaks(model: Any, ids: Tensor) -> bool:
    """Whether a sequence's states depend, however little, on tokens that are none of it: exactly, by autograd."""
    leaves: list[Tensor] = []

    def as_leaf(embedding: Any, arguments: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1] * 1.0  # a model may change what its embedding returns in place

    hook = model.get_input_embeddings().register_forward_hook(as_leaf)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            states = _packed_states(model, ids.clone())
            if len(leaves) != 1:
                return False  # another module embeds the tokens: the forward pass has to do
            for part, others in ((SECOND, [FIRST, OTHER]), (OTHER, [slice(0, 11)])):
                weights = torch.linspace(-1, 1, states[part].numel(), device=states.device).view_as(states[part])
                total = (states[part].float() * weights).sum()
                (gradient,) = torch.autograd.grad(total, leaves, retain_graph=part is SECOND)
                if any(bool(gradient[0, other].any()) for other in others):
                    return True
    finally:
        hook.remove()
    return False


def _packed_states(model: Any, ids: Tensor) -> Tensor:
    """(16, D): the states of the probe's packed row, ids (16,)."""
    return hidden_states(model, ids[None], torch.tensor([POSITIONS], device=ids.device), SEGMENTS)[0]


def _sizes(hidden: Tensor) -> Tensor:
    """(T,) float32: the mean absolute value of each state, (T, D).

    A few of a state's D numbers can be far larger and noisier than the rest, so the largest difference would say
    little.
    """
    return hidden.float().abs().mean(-1)
