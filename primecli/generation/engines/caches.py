"""What a model carries from one token to the next, as rows of a batch, in any cache that transformers makes.

Keys and values, windows of them, convolution windows and recurrent states all have a row for each sequence, but neither
the same form nor the same methods. So `Carried` walks through whatever objects hold them. Where they are, and along
which dimension each tensor has its rows, is found out by `learn_layout`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from primecli.generation.engines.roomy_layer import RoomyLayer
from primecli.generation.engines.state_tensors import CacheError, Change, Path, replace_tensors, spell_path

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call their cache, as an argument and in their output: attention and hybrids, Mamba, RWKV."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where a model keeps its state, and which dimension of each tensor is that of the rows.

    cache_name: what the model calls its cache; one of CACHE_NAMES.
    makes_cache: whether it makes its cache itself and returns it, or has to be given an empty one.
    held: parts of the state that the model keeps in its modules, as (module, attribute, value before a prompt).
    dims: the dimension of the rows of each tensor; None of one that all rows share. None as a whole where the rows
        cannot be told apart; `problem` says why.
    tokens: the length of a prompt that fills every part of the state.
    """

    cache_name: str
    makes_cache: bool
    held: tuple[tuple[torch.nn.Module, str, Any], ...] = ()
    dims: Mapping[Path, int | None] | None = None
    problem: str | None = None
    tokens: int = 4


class State(Protocol):
    """The state of a batch of B sequences."""

    def run(self, model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Runs t more tokens of each sequence, and returns the logits of the token after them, (B, V).

        ids, positions: (B, t). mask: (B, T so far), 0 on padding; None to give the model none.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; one may come several times. rows: (kept,) int64, on the state's device.

        Raises CacheError where they cannot be told apart.
        """
        ...

    def join(self, others: Sequence[Self]) -> None:
        """Appends the rows of states of the same model after prompts that are no longer than this one's.

        Keys and values of shorter prompts are padded on the left, as a prompt would be. Raises CacheError where the
        states are of different forms.
        """
        ...

    def give_room(self) -> None:
        """Gives plain layers of keys and values room to grow. Others hold a window or a state, which does not grow."""
        ...


class Recomputed:
    """The state of models whose cache is not used: the tokens themselves, and the positions of each."""

    def __init__(self, model: Any) -> None:
        self._names = _argument_names(model)
        self.ids: Tensor | None = None
        self.positions: Tensor | None = None

    def run(self, model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Runs the whole sequences, as `State.run`."""
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], 1)
        self.positions = positions if self.positions is None else torch.cat([self.positions, positions], 1)
        arguments = {"input_ids": self.ids, "attention_mask": mask, "position_ids": self.positions}
        output = model(**_taken(self._names, {**arguments, "use_cache": False, "logits_to_keep": 1}))
        logits: Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, as `State.select`."""
        if self.ids is not None and self.positions is not None:
            self.ids, self.positions = self.ids[rows], self.positions[rows]

    def join(self, others: Sequence[Recomputed]) -> None:
        """Raises CacheError: tokens need no other prefill than padding."""
        raise CacheError("tokens are not joined")

    def give_room(self) -> None:
        """Does nothing."""


class Carried:
    """The state of a batch of B sequences: the model's cache, and what the model keeps in its modules.

    cache: None before a prompt, where the model makes its cache itself.
    length: T, tokens of each sequence so far, with padding.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        self.layout = layout
        self.cache: Any = None
        if not layout.makes_cache:
            self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self.length = 0
        self._names = _argument_names(model)
        self._held = [fresh for _, _, fresh in layout.held]

    def run(self, model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Runs the tokens from the state on, as `State.run`."""
        arguments = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            self.layout.cache_name: self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        for (module, name, _), value in zip(self.layout.held, self._held, strict=True):
            setattr(module, name, value)
        output = model(**_taken(self._names, arguments))
        self.length += ids.shape[1]
        self._held = [getattr(module, name) for module, name, _ in self.layout.held]
        if self.layout.makes_cache:
            self.cache = output[self.layout.cache_name]
        logits: Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, as `State.select`."""
        width = self._width()

        def select(path: Path, tensors: Sequence[Tensor]) -> Tensor:
            dim = self._dim(path, tensors[0], width)
            return tensors[0] if dim is None else tensors[0].index_select(dim, rows)

        self._replace([self], select)
        for layer in self._roomy():
            layer.batch_select_indices(rows)

    def join(self, others: Sequence[Carried]) -> None:
        """Appends the rows of other states, as `State.join`."""
        widths = [each._width() for each in (self, *others)]

        def join(path: Path, tensors: Sequence[Tensor]) -> Tensor:
            dims = {each._dim(path, tensor, width) for each, tensor, width in zip(states, tensors, widths, strict=True)}
            dim = dims.pop()
            if dims:
                raise CacheError(f"{spell_path(path)} differs between prompts")
            if dim is None:
                return tensors[0]
            lengths = [each.length for each in states]
            padded = [_padded(*each, tensors[0], dim) for each in zip(tensors, lengths, strict=True)]
            return torch.cat(padded, dim)

        states = (self, *others)
        self._replace(states, join)

    def give_room(self) -> None:
        """Gives plain layers room, as `State.give_room`."""
        layers = getattr(self.cache, "layers", [])
        for number, layer in enumerate(layers):
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
                layers[number] = RoomyLayer(layer.keys, layer.values)

    def tensors(self) -> Iterator[tuple[Path, Tensor]]:
        """Every tensor of the state with its path."""
        found: list[tuple[Path, Tensor]] = []

        def note(path: Path, tensors: Sequence[Tensor]) -> Tensor:
            found.append((path, tensors[0]))
            return tensors[0]

        self._replace([self], note)
        yield from found

    def _replace(self, states: Sequence[Carried], change: Change) -> None:
        """Replaces each tensor of this state by `change` of it and of those at the same place in the other states."""
        self.cache, self._held = replace_tensors([[each.cache, each._held] for each in states], change)

    def _roomy(self) -> list[RoomyLayer]:
        return [layer for layer in getattr(self.cache, "layers", []) if isinstance(layer, RoomyLayer)]

    def _width(self) -> int:
        """B, from any tensor whose rows are known."""
        for layer in self._roomy():
            return len(layer.keys)
        dims = self._dims()
        for path, tensor in self.tensors():
            dim = dims.get(path)
            if dim is not None:
                return tensor.shape[dim]
        raise CacheError("it has no rows")

    def _dims(self) -> Mapping[Path, int | None]:
        if self.layout.dims is None:
            raise CacheError(self.layout.problem or "its rows cannot be told apart")
        return self.layout.dims

    def _dim(self, path: Path, tensor: Tensor, width: int) -> int | None:
        """The dimension of a tensor's rows: the first of one that was not there when the layout was learned."""
        dims = self._dims()
        if path in dims:
            return dims[path]
        if tensor.dim() and tensor.shape[0] == width:
            return 0
        raise CacheError(f"{spell_path(path)} appeared later, and its rows cannot be told apart")


def _padded(tensor: Tensor, tokens: int, longest: Tensor, rows: int) -> Tensor:
    """A tensor of a sequence, with zeros before it along the dimension of its tokens, if `longest` has more of them.

    tokens: how many the sequence has. rows: the dimension of the rows. Raises CacheError unless the tensor has
    something for each token: what it has for some of them belongs to another place.
    """
    for dim in range(tensor.dim()):
        missing = longest.shape[dim] - tensor.shape[dim]
        if dim != rows and missing > 0:
            if tensor.shape[dim] != tokens:
                raise CacheError(f"it holds something for {tensor.shape[dim]} of {tokens} tokens")
            shape = list(tensor.shape)
            shape[dim] = missing
            tensor = torch.cat([tensor.new_zeros(shape), tensor], dim)
    return tensor


def _argument_names(model: Any) -> frozenset[str] | None:
    """The names of the arguments that the model takes; None where it takes any."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return None if takes_any else frozenset(parameters)


def _taken(names: frozenset[str] | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if names is None or name in names}
