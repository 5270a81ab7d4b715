"""What a model carries from one token to the next, as rows of a batch, in any cache that transformers makes.

Keys and values, windows of them, convolution windows and recurrent states all have a row for each sequence, but neither
the same form nor the same methods. So `Carried` walks through whatever objects hold them, and `learn_layout` finds out
along which dimension each tensor has its rows: it runs the model on two rows and on three, and compares the shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from primecli.errors import first_line, is_out_of_memory
from primecli.models.device import Placement

# A full cache gets room for this many more tokens, or for this share of those that it holds if that is more: copies are
# rare then, and little memory is unused.
LEAST_ROOM = 32
ROOM = 0.25

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call their cache, as an argument and in their output: attention and hybrids, Mamba, RWKV."""

# Tokens of the prompts that a layout is learned from. The next is tried while a part of the state is still empty, as
# keys are that stand for 128 tokens each.
LENGTHS = (4, 40, 400)

Path: TypeAlias = tuple[str | int, ...]
"""Where a tensor is: attributes, keys and indices from the outermost object on, as in (0, "layers", 2, "keys")."""


Change: TypeAlias = Callable[[Path, Sequence[Tensor]], Tensor]
"""From a path and the tensors there, one of each state, to the tensor that replaces the first."""


class CacheError(Exception):
    """A state has a form whose rows cannot be told apart, selected or joined."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where a model keeps its state, and which dimension of each tensor is that of the rows.

    cache_name: what the model calls its cache; one of CACHE_NAMES.
    makes_cache: whether it makes its cache itself and returns it, or has to be given an empty one.
    arguments: the names of the arguments that it takes; None where it takes any.
    held: parts of the state that the model keeps in its modules, as (module, attribute, value before a prompt).
    dims: the dimension of the rows of each tensor; None of one that all rows share. None as a whole where the rows
        cannot be told apart; `problem` says why.
    tokens: the length of a prompt that fills every part of the state.
    """

    cache_name: str
    makes_cache: bool
    arguments: frozenset[str] | None
    held: tuple[tuple[torch.nn.Module, str, Any], ...] = ()
    dims: Mapping[Path, int | None] | None = None
    problem: str | None = None
    tokens: int = LENGTHS[0]


class Carried:
    """The state of a batch of B sequences: the model's cache, and what the model keeps in its modules.

    cache: None before a prompt, where the model makes its cache itself.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        self.layout = layout
        self.cache: Any = None
        if not layout.makes_cache:
            self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._held = [fresh for _, _, fresh in layout.held]

    def run(self, model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Runs t more tokens of each sequence, and returns the logits of the token after them, (B, V).

        ids, positions: (B, t). mask: (B, T so far), 0 on padding; None to give the model none.
        """
        arguments = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            self.layout.cache_name: self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        known = self.layout.arguments
        for (module, name, _), value in zip(self.layout.held, self._held, strict=True):
            setattr(module, name, value)
        output = model(**{name: value for name, value in arguments.items() if known is None or name in known})
        self._held = [getattr(module, name) for module, name, _ in self.layout.held]
        if self.layout.makes_cache:
            self.cache = output[self.layout.cache_name]
        logits: Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; one may come several times. rows: (kept,) int64, on the state's device.

        Raises CacheError where they cannot be told apart.
        """
        width = self._width()

        def select(path: Path, tensors: Sequence[Tensor]) -> Tensor:
            dim = self._dim(path, tensors[0], width)
            return tensors[0] if dim is None else tensors[0].index_select(dim, rows)

        self._replace([self], select)
        for layer in self._roomy():
            layer.batch_select_indices(rows)

    def join(self, others: Sequence[Carried]) -> None:
        """Appends the rows of states of the same model after prompts that are no longer than this one's.

        Keys and values of shorter prompts are padded on the left, as a prompt would be. Raises CacheError where the
        states are of different forms.
        """
        widths = [each._width() for each in (self, *others)]

        def join(path: Path, tensors: Sequence[Tensor]) -> Tensor:
            dims = {each._dim(path, tensor, width) for each, tensor, width in zip(states, tensors, widths, strict=True)}
            dim = dims.pop()
            if dims:
                raise CacheError(f"{_spell(path)} differs between prompts")
            return tensors[0] if dim is None else torch.cat([_padded(each, tensors[0], dim) for each in tensors], dim)

        states = (self, *others)
        self._replace(states, join)

    def give_room(self) -> None:
        """Gives plain layers of keys and values room to grow. Others hold a window or a state, which does not grow."""
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
        raise CacheError(f"{_spell(path)} appeared later, and its rows cannot be told apart")


def replace_tensors(states: Sequence[Any], change: Change, path: Path = (), seen: dict[Any, Any] | None = None) -> Any:
    """The first of several objects of the same form, with every tensor in it replaced by `change`.

    Lists, dictionaries and other objects are changed in place; tuples are made anew. A tensor that is in two places
    stays one. A `RoomyLayer` is left as it is. Raises CacheError where the objects are of different forms.
    """
    seen = {} if seen is None else seen
    first = states[0]
    if any(type(state) is not type(first) for state in states):
        raise CacheError(f"{_spell(path)} differs between prompts")
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
            raise CacheError(f"{_spell((*path, key))} differs between prompts")
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


def _padded(tensor: Tensor, longest: Tensor, rows: int) -> Tensor:
    """A tensor with zeros before it where it is shorter than `longest` along a dimension other than that of the rows."""
    if tensor.dim() != longest.dim():
        raise CacheError(f"it has {tensor.dim()} dimensions or {longest.dim()}, depending on the prompt")
    for dim in range(tensor.dim()):
        missing = longest.shape[dim] - tensor.shape[dim]
        if dim != rows and missing > 0:
            shape = list(tensor.shape)
            shape[dim] = missing
            tensor = torch.cat([tensor.new_zeros(shape), tensor], dim)
    return tensor


def _spell(path: Path) -> str:
    """A path as Python would write it.

    >>> _spell((0, "layers", 2, "conv_states", 0)), _spell((1, 3))
    ('layers[2].conv_states[0]', 'the state in its modules')
    """
    if path[:1] != (0,):
        return "the state in its modules"
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[1:])
    return text.removeprefix(".") or "its cache"


def learn_layout(model: Any, placement: Placement) -> Layout:
    """Finds out where a model keeps its state, and along which dimension its tensors have their rows.

    Runs the model on short prompts. Raises CacheError where it returns no state that can be given back to it, and
    whatever the model raises.
    """
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    name = next((each for each in CACHE_NAMES if each in parameters), CACHE_NAMES[0])
    arguments = None if takes_any else frozenset(parameters)
    plain = Layout(name, _returns_cache(model, placement, Layout(name, True, arguments)), arguments)
    with placement.autocast():  # without a cache, which leaves no state of an earlier sequence in the modules
        model(input_ids=torch.ones(1, 2, dtype=torch.int64, device=placement.device), use_cache=False)
    before = {(module, key): value for module in model.modules() for key, value in vars(module).items()}
    layout = plain
    for tokens in LENGTHS:
        found = []
        for rows in (2, 3):
            for (module, key), value in before.items():
                if isinstance(vars(module).get(key), Tensor):
                    setattr(module, key, value)
            state = Carried(model, plain)
            try:
                run_prompts(model, placement, state, rows, tokens)
            except Exception as error:  # whatever a model raises that takes no more than one row
                if is_out_of_memory(error):
                    raise
                return replace(plain, problem=first_line(error))
            found.append((state.cache, _tensors_in_modules(model)))
        layout, empty = _compared(replace(plain, tokens=tokens), found, before)
        if not empty:
            break
    return layout


def _tensors_in_modules(model: Any) -> dict[tuple[torch.nn.Module, str], Tensor]:
    """Tensors that are plain attributes of a module, neither parameters nor buffers, by module and attribute."""
    return {
        (module, key): value
        for module in model.modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def run_prompts(model: Any, placement: Placement, state: Carried, rows: int, tokens: int) -> Tensor:
    """The logits, (rows, V), of a model after equal prompts of so many tokens."""
    size = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(1, tokens + 1, device=placement.device) % size).repeat(rows, 1)
    positions = torch.arange(tokens, device=placement.device).repeat(rows, 1)
    with placement.autocast():
        return state.run(model, ids, torch.ones_like(ids), positions)


def _returns_cache(model: Any, placement: Placement, layout: Layout) -> bool:
    try:
        state = Carried(model, layout)
        run_prompts(model, placement, state, 1, 2)
    except KeyError:  # the output has nothing of this name
        return False
    return state.cache is not None


def _compared(
    layout: Layout, found: Sequence[tuple[Any, Mapping[Any, Tensor]]], before: Mapping[Any, Any]
) -> tuple[Layout, bool]:
    """Adds to a layout what two states show, of two rows and of three. Also returns whether some tensors are empty.

    found: each cache, and the tensors in the model's modules. before: attributes of the modules before a prompt.
    """
    (two, two_held), (three, three_held) = found
    held = []
    dims: dict[Path, int | None] = {}
    for key, tensor in two_held.items():
        dim = _row_dim(tensor, three_held[key]) if key in three_held else None
        if dim is not None and dim >= 0:
            dims[1, len(held)] = dim
            held.append((*key, before.get(key)))
    empty = False

    def compare(path: Path, tensors: Sequence[Tensor]) -> Tensor:
        nonlocal empty
        dims[path] = dim = _row_dim(*tensors)
        if dim is not None and dim < 0:
            raise CacheError(f"the rows of {_spell(path)} cannot be told apart")
        empty = empty or (dim is not None and not tensors[0].numel())
        return tensors[0]

    layout = replace(layout, held=tuple(held))
    try:
        replace_tensors([[two], [three]], compare)
    except CacheError as error:
        return replace(layout, problem=str(error)), False
    return replace(layout, dims=dims), empty


def _row_dim(two: Tensor, three: Tensor) -> int | None:
    """The dimension along which a tensor has as many entries as there are rows; None if all rows share it, else -1."""
    if two.shape == three.shape:
        return None
    if two.dim() == three.dim():
        differing = [dim for dim in range(two.dim()) if two.shape[dim] != three.shape[dim]]
        if len(differing) == 1 and (two.shape[differing[0]], three.shape[differing[0]]) == (2, 3):
            return differing[0]
    return -1
