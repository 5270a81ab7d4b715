"""A layer of a key-value cache that has room to grow without being copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

# A full cache gets room for this many more tokens, or for this share of those that it holds if that is more: copies are
# rare then, and little memory is unused.
LEAST_ROOM = 32
ROOM = 0.25


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
