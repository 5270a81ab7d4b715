from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from primecli.generation.engines.roomy_layer import RoomyLayer
from primecli.generation.engines.state_tensors import CacheError, Path, replace_tensors


class Pair(NamedTuple):
    first: Tensor
    second: int


def make_state(value: float = 1.0) -> Any:
    def tensor(add: float) -> Tensor:
        return torch.full((2, 1), value + add)

    shared = tensor(0)
    layer = SimpleNamespace(keys=shared, values=shared, length=3, nothing=None, call=len)
    layer.owner = layer  # a cycle
    return {"layers": [layer, {0: tensor(1)}], "pair": Pair(tensor(2), 7), "tuple": (tensor(3),)}


def note_and_double(found: dict[Path, Any]) -> Any:
    def change(path: Path, tensors: Sequence[Tensor]) -> Tensor:
        found[path] = [float(tensor[0, 0]) for tensor in tensors]
        return tensors[0] * 2

    return change


def test_every_tensor_is_found_and_replaced_where_it_is() -> None:
    state, found = make_state(), dict[Path, Any]()
    layer = state["layers"][0]
    same = replace_tensors([state], note_and_double(found))
    assert same is state
    assert state["layers"][0] is layer
    assert found == {("layers", 0, "keys"): [1], ("layers", 1, 0): [2], ("pair", 0): [3], ("tuple", 0): [4]}
    assert layer.values is layer.keys  # one tensor in two places stays one
    assert (layer.length, layer.nothing, layer.call) == (3, None, len)
    assert isinstance(state["pair"], Pair)
    assert state["pair"].second == 7
    assert [float(each[0, 0]) for each in (layer.keys, state["layers"][1][0], state["pair"][0], state["tuple"][0])] == [
        2,
        4,
        6,
        8,
    ]


def test_tensors_of_several_states_come_together() -> None:
    found = dict[Path, Any]()
    replace_tensors([make_state(1), make_state(10)], note_and_double(found))
    assert found["layers", 0, "keys"] == [1, 10]
    assert found["tuple", 0] == [4, 13]


def test_a_layer_with_room_is_left_alone() -> None:
    layer = RoomyLayer(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1))
    layer.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    found = dict[Path, Any]()
    replace_tensors([[layer]], note_and_double(found))
    assert not found


@pytest.mark.parametrize("kind", ["missing", "longer", "none", "other key"])
def test_states_of_different_forms_are_refused(kind: str) -> None:
    one, other = make_state(), make_state()
    if kind == "missing":
        del other["layers"][0].keys
    elif kind == "longer":
        other["layers"].append(torch.ones(2, 1))
    elif kind == "none":
        other["layers"][1][0] = None
    else:
        other["layers"][1] = {1: torch.ones(2, 1)}
    with pytest.raises(CacheError, match="differs between prompts"):
        replace_tensors([one, other], note_and_double({}))
