"""Models whose parameters are the mapped tensors of a checkpoint's float32 file: none is loaded to be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.models import checkpoints, lora, mapped
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
    values: dict[int, torch.nn.Parameter] = {}
    with TensorFiles(sorted(directory.glob("*.safetensors"))) as files:
        names = names_in(files, model)
        buffers, parameters = stored_buffers(model), lora.parameters(model)
        fresh = {name for name in parameters if critic and name.startswith(f"{lora.HEAD}.") and name not in names}
        if not {*parameters, *buffers} - fresh <= names.keys():
            return None
        for name, parameter in parameters.items():
            if name in fresh and name not in saved:
                value = torch.zeros(parameter.shape)
            else:
                value = mapped.aligned(checkpoints.fitting_tensor(saved, name, parameter, path).float())
            values[id(parameter)] = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
        for name, buffer in buffers.items():
            buffer.copy_(files.rows(names[name], 0, len(buffer) if buffer.ndim else 1))
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = values[id(parameter)]
    # what transformers undoes when it saves a model: nothing, since the names are those of the files
    model._weight_conversions = []
    return model
