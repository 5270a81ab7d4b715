"""Decoding token by token: a batch and its key-value cache, which has room to grow without being copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from primecli.models.attention import DECODING, register_decoding
from primecli.models.device import Placement

# A full cache gets room for this many more tokens, or for this share of those that it holds if that is more: copies are
# rare then, and little memory is unused.
LEAST_ROOM = 32
ROOM = 0.25


def avoid_key_copies(model: Any) -> None:
    """Has a model with fewer key heads than query heads decode without copying its keys (`attention.attend`).

    Only a model that attends by `sdpa` would copy them; others are left as they are.
    """
    if model.config._attn_implementation != "sdpa" or not getattr(model, "_supports_attention_backend", False):
        return
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    if heads != (getattr(config, "num_key_value_heads", None) or heads):
        register_decoding()
        model.set_attn_implementation(DECODING)


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's keys and values with room after them, so that a step writes its own without copying the earlier ones.

    `keys` and `values` are what transformers' own layer would hold, (B, K, T, d), as views into larger buffers. It
    starts with the tensors of such a layer.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values of t tokens, (B, K, t, d), and returns all of them, (B, K, T + t, d)."""
        held = self.keys.shape[-2]
        length = held + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < length:
            room = length + max(LEAST_ROOM, int(ROOM * length))
            self._buffers = _with_room(self.keys, room), _with_room(self.values, room)
        keys, values = self._buffers
        keys[..., held:length, :] = key_states
        values[..., held:length, :] = value_states
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps only these rows."""
        super().batch_select_indices(indices)
        self._buffers = None


def _with_room(held: Tensor, room: int) -> Tensor:
    """A tensor of (B, K, room, d) that begins with `held`, (B, K, T, d)."""
    buffer = held.new_empty((*held.shape[:-2], room, held.shape[-1]))
    buffer[..., : held.shape[-2], :] = held
    return buffer


class Decoding:
    """A batch that is being decoded: its cache, its mask and the logits of the next token.

    Constructing it runs the prompts, padded on the left, through the model.

    prompts: their token ids. sizes: number of samples of each prompt, B in total. mask: (B, T so far), 0 on padding.
    positions: (B, 1), of the last token. logits: (B, V).
    """

    def __init__(
        self, model: Any, placement: Placement, prompts: Sequence[Sequence[int]], sizes: Sequence[int]
    ) -> None:
        self.model, self.placement = model, placement
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        mask = mask.to(placement.device)
        self.positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (prompts, T), 0 on padding
        output = self._forward(ids.to(placement.device), mask, self.positions, None)
        # each prompt is computed once for all its samples; from here on there is a row for each sample, B in total
        rows = torch.repeat_interleave(torch.tensor(sizes)).to(placement.device)
        self.cache = output.past_key_values
        self.cache.batch_select_indices(rows)
        for number, layer in enumerate(self.cache.layers):
            # layers of other types hold a window or a state, which does not grow
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
                self.cache.layers[number] = RoomyLayer(layer.keys, layer.values)
        self.logits = output.logits[rows, -1]  # (B, V)
        self.mask = mask[rows]
        self.positions = self.positions[rows, -1:]  # (B, 1)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Any:
        with self.placement.autocast():
            return self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )

    def keep(self, rows: Tensor) -> None:
        """Removes all other rows from the batch. rows: (kept,) int64."""
        rows = rows.to(self.placement.device)
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def advance(self, tokens: Tensor) -> None:
        """Appends one token to each row and computes the logits of the next. tokens: (B,) int64."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions + 1
        output = self._forward(tokens[:, None], self.mask, self.positions, self.cache)
        self.cache = output.past_key_values
        self.logits = output.logits[:, -1]
