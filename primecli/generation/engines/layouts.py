"""Where a model keeps its state, and which dimension of each tensor is that of the rows, found out by running it.

The model computes two rows and three, and the shapes of what it keeps are compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from primecli.errors import first_line, is_out_of_memory
from primecli.generation.engines.caches import CACHE_NAMES, Carried, Layout
from primecli.generation.engines.state_tensors import CacheError, Path, replace_tensors, spell_path
from primecli.models.device import Placement

# Tokens of the prompts that a layout is learned from. The next is tried while a part of the state is still empty, as
# keys are that stand for 128 tokens each.
LENGTHS = (4, 40, 400)


def learn_layout(model: Any, placement: Placement) -> Layout:
    """Finds out where a model keeps its state, and along which dimension its tensors have their rows.

    Runs the model on short prompts. Raises CacheError where it returns no state that can be given back to it, and
    whatever the model raises.
    """
    parameters = inspect.signature(model.forward).parameters
    name = next((each for each in CACHE_NAMES if each in parameters), CACHE_NAMES[0])
    plain = Layout(name, _returns_cache(model, placement, Layout(name, True)))
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
    held: list[tuple[torch.nn.Module, str, Any]] = []
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
            raise CacheError(f"the rows of {spell_path(path)} cannot be told apart")
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
