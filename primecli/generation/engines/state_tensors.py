"""The tensors in a model's state, whatever objects hold it: found, named by a path, and replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from primecli.generation.engines.roomy_layer import RoomyLayer

Path: TypeAlias = tuple[str | int, ...]
"""Where a tensor is: attributes, keys and indices from the outermost object on, as in (0, "layers", 2, "keys")."""


Change: TypeAlias = Callable[[Path, Sequence[Tensor]], Tensor]
"""From a path and the tensors there, one of each state, to the tensor that replaces the first."""


class CacheError(Exception):
    """A state has a form whose rows cannot be told apart, selected or joined."""


def replace_tensors(states: Sequence[Any], change: Change, path: Path = (), seen: dict[Any, Any] | None = None) -> Any:
    """The first of several objects of the same form, with every tensor in it replaced by `change`.

    Lists, dictionaries and other objects are changed in place; tuples are made anew. A tensor that is in two places
    stays one. A `RoomyLayer` is left as it is: it has rows of its own. Raises CacheError where the objects are of
    different forms.
    """
    seen = {} if seen is None else seen
    first = states[0]
    if any(type(state) is not type(first) for state in states):
        raise CacheError(f"{spell_path(path)} differs between prompts")
    parts = [_parts(state) for state in states]
    if parts[0] is None and not isinstance(first, Tensor):
        return first
    known = tuple(map(id, states))
    if known in seen:
        return seen[known][0]
    if isinstance(first, Tensor):
        seen[known] = change(path, states), states  # the states are kept, so that no id is used twice
        return seen[known][0]
    seen[known] = first, states
    changed = {}
    for key, part in (parts[0] or {}).items():
        if any(other is None or key not in other or len(other) != len(parts[0] or {}) for other in parts):
            raise CacheError(f"{spell_path((*path, key))} differs between prompts")
        new = replace_tensors([(other or {})[key] for other in parts], change, (*path, key), seen)
        if new is not part:
            changed[key] = new
    if isinstance(first, tuple) and changed:
        values = [changed.get(number, value) for number, value in enumerate(first)]
        first = type(first)(*values) if hasattr(first, "_fields") else type(first)(values)
        seen[known] = first, states
    else:
        for key, new in changed.items():
            if isinstance(first, dict | list):
                first[key] = new
            else:
                setattr(first, key, new)
    return first


def _parts(state: Any) -> dict[Any, Any] | None:
    """What an object is made of, by key, index or attribute; None where no tensors of a state are in it."""
    if isinstance(state, dict):
        return dict(state)
    if isinstance(state, list | tuple):
        return dict(enumerate(state))
    if isinstance(state, Tensor | RoomyLayer | PreTrainedConfig | torch.nn.Module | type) or callable(state):
        return None
    return dict(vars(state)) if hasattr(state, "__dict__") else None


def spell_path(path: Path) -> str:
    """A path as Python would write it.

    >>> spell_path((0, "layers", 2, "conv_states", 0)), spell_path((1, 3))
    ('layers[2].conv_states[0]', 'the state in its modules')
    """
    if path[:1] != (0,):
        return "the state in its modules"
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[1:])
    return text.removeprefix(".") or "its cache"
