"""One token after another from a running batch: its key-value cache, and attention to it that copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from primecli.models.attention import DECODING, register_decoding
from primecli.models.device import Placement

LEAST_ROOM = 32  # tokens for which a cache has room beyond those that it holds, or
ROOM = 0.25  # that share of them, whichever is more


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
    """A layer's keys and values with room behind them: a step writes its own, and does not copy all that came before.

    What transformers' own layer holds, (B, K, T, d), as a view into more. It takes over the tensors of such a layer.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends (B, K, t, d) keys and values, and returns all that there are."""
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
        """Only keeps those rows."""
        super().batch_select_indices(indices)
        self._buffers = None


def _with_room(held: Tensor, room: int) -> Tensor:
    """(B, K, room, d) that begins with `held`, (B, K, T, d)."""
    buffer = held.new_empty((*held.shape[:-2], room, held.shape[-1]))
    buffer[..., : held.shape[-2], :] = held
    return buffer


class Decoding:
    """A running batch: its cache, its mask and the logits of the next token. Prompts are filled at the left."""

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
        self.positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, T)
        output = self._forward(ids.to(placement.device), mask, self.positions, None)
        # the samples of a prompt share its forward pass; B rows from here on
        rows = torch.repeat_interleave(torch.tensor(sizes)).to(placement.device)
        self.cache = output.past_key_values
        self.cache.batch_select_indices(rows)
        for number, layer in enumerate(self.cache.layers):
            # others hold a window or a state, which does not grow
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
        """Drops all other rows of the batch."""
        rows = rows.to(self.placement.device)
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def advance(self, tokens: Tensor) -> None:
        """Appends one token to each row: tokens (B,)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions + 1
        output = self._forward(tokens[:, None], self.mask, self.positions, self.cache)
        self.cache = output.past_key_values
        self.logits = output.logits[:, -1]
