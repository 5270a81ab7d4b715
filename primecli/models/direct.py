"""Models whose parameters are the tensors of their files: mapped, or read once to where they are to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.models import checkpoints, lora, mapped
from primecli.models.device import fitting, wait_for_memory
from primecli.models.skeleton import skeleton
from primecli.models.slices import TensorFiles

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def stored_buffers(model: Any) -> dict[str, Tensor]:
    """The buffers that belong to a model's state, by name, such as the bias of a router."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def names_in(files: TensorFiles, model: Any) -> dict[str, str]:
    """The names under which files store a model's parameters and buffers, by its own first names for them.

    Only of those that are stored under one of their names (tied ones have several) and in their own shape.
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    names: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        known = [alias for alias in aliases[id(parameter)] if alias in files and files.shape(alias) == shape]
        names.update({name: known[0]} if known else {})
    return names | {name: name for name in stored_buffers(model) if name in files}


def from_masters(directory: Path, *, critic: bool = False) -> Any | None:
    """A checkpoint's model in float32 on the CPU, with the parameters that it is trained on, mapped from their file.

    None for a model that has no such file, or that is not exported under the names and in the shapes of its parameters,
    as mixtures of experts are not: how to save those again, transformers knows only once it has loaded them. critic: it
    is to be one, with a value head that is all 0 where the checkpoint has none. Raises InputError for a tensor that is
    missing or has another shape.
    """
    import torch

    path = checkpoints.masters(directory)
    if path is None:
        return None
    model = skeleton(directory, torch.float32, critic=critic)
    saved = checkpoints.load_tensors(path)

    def value(name: str, parameter: Tensor) -> Tensor:
        return mapped.aligned(checkpoints.fitting_tensor(saved, name, parameter, path).float())

    with TensorFiles(sorted(directory.glob("*.safetensors"))) as files:
        names = _stored(files, model, critic)
        if names is None:
            return None
        known = names.keys() | saved.keys()
        values = {name: value(name, each) for name, each in lora.parameters(model).items() if name in known}
        return _filled(model, values, files)


def from_exported(directory: Path, device: torch.device, *, critic: bool = False) -> Any | None:
    """A model in float32 as its files store it, each parameter read once, and cast on the device where it is to be.

    On a CPU, parameters that need no cast are the mapped tensors of the files. None, and transformers has to load it,
    where a file stores a parameter under another name, in another shape or not at all. Not for 16 bits: transformers
    would keep some parameters in float32, and compute some models' buffers in another precision than a skeleton has.
    critic: as in `from_masters`.
    """
    import torch

    model = skeleton(directory, torch.float32, critic=critic)
    try:
        files = TensorFiles(sorted(directory.glob("*.safetensors")))
    except InputError:
        return None  # transformers says what is wrong
    with files:
        names = _stored(files, model, critic)
        if names is None:
            return None
        wait_for_memory(device, sum(each.nbytes for each in model.parameters()))
        with fitting(device):
            values = {
                name: files.whole(names[name]).to(device).to(each.dtype)
                for name, each in model.named_parameters()
                if name in names
            }
            return _filled(model, values, files)


def _stored(files: TensorFiles, model: Any, critic: bool) -> dict[str, str] | None:
    """As `names_in`, where that is all parameters and buffers, but for a critic's value head; else None."""
    names = names_in(files, model)
    wanted = [*dict(model.named_parameters()), *stored_buffers(model)]
    head = f"{lora.HEAD}."
    return names if all(name in names or (critic and name.startswith(head)) for name in wanted) else None


def _filled(model: Any, values: Mapping[str, Tensor], files: TensorFiles) -> Any:
    """The model with these parameters, by name, and the buffers of its files. Others, of a value head, become 0."""
    import torch

    made: dict[int, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        value = values[name] if name in values else torch.zeros(parameter.shape, dtype=parameter.dtype)
        made[id(parameter)] = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
    for name, buffer in stored_buffers(model).items():
        buffer.copy_(files.whole(name))
    # what transformers undoes when it saves a model: nothing, since the names are those of the files
    model._weight_conversions = []
    return model
