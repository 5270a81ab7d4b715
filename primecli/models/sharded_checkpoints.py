"""Checkpoints written by many ranks: the directory that one process would write, each rank writing its own rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.files import Json
from primecli.models import checkpoints, lora
from primecli.models.checkpoints import BASE, GENERATION_CONFIG, MASTER, OPTIMIZER
from primecli.models.direct import stored_buffers
from primecli.models.identity import TRAINER_DIRECTORY
from primecli.models.mapped import ALIGNMENT
from primecli.models.sharded import BY_NAME
from primecli.models.slices import SharedFile, torch_name
from primecli.parallel.ranks import Ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LARGEST_FILE = 50 * 10**9  # bytes of one file of an exported model: what transformers' save_pretrained allows too

FORMAT = {"format": "pt"}  # what transformers says in a model's files, and wants to read there

Tensors = Mapping[str, "torch.nn.Parameter | Tensor"]
"""What each rank has some rows of, by name; their shapes are those of the whole tensors."""


def save(
    directory: Path,
    model: Any,
    moments: Mapping[str, Tensor],
    *,
    source: Path,
    same_base: bool,
    record: Mapping[str, Json],
    lineage: Sequence[str],
    steps: Sequence[Mapping[str, float]],
    ranks: Ranks,
) -> None:
    """As `saving.save`, by all ranks together. moments: this rank's rows of them."""
    import torch

    trainer = directory / TRAINER_DIRECTORY
    if ranks.first:
        trainer.mkdir()
    ranks.wait_for_all()
    dtype, adapted = checkpoints.stored_dtype(source), lora.has_adapters(model)
    kept = lora.trained(model) if adapted else lora.parameters(model)
    exact = checkpoints.kept_in_float32(model, source, dtype)
    by_name = bool(getattr(model, BY_NAME))
    in_model = dtype == torch.float32 and not adapted and by_name
    if not in_model:
        _write(trainer / MASTER, kept, dict.fromkeys(kept, torch.float32), ranks)
    _write_moments(trainer / OPTIMIZER, lora.trained(model), moments, ranks)
    if adapted:
        _write_base(trainer / BASE, lora.frozen(model), source if same_base else None, ranks)
    if by_name:
        _export(directory, model, dtype, exact, ranks)
    else:
        _export_whole(directory, model, dtype, exact, ranks)
    ranks.wait_for_all()
    if ranks.first:
        checkpoints.complete(directory, source, record, lineage, steps, master_in_model=in_model)
    ranks.wait_for_all()


def _write(path: Path, tensors: Tensors, dtypes: Mapping[str, torch.dtype], ranks: Ranks) -> None:
    """Writes one file. tensors: see `Tensors`. dtypes: in which each is stored."""
    entries = {name: (tuple(tensor.shape), torch_name(dtypes[name])) for name, tensor in tensors.items()}
    file = SharedFile(path, entries, alignment=ALIGNMENT)
    _write_rows(file, lambda name, start, stop: _own(tensors[name]), tensors, ranks)


def _own(tensor: Tensor) -> Tensor:
    from primecli.parallel import sharding

    return sharding.local(tensor.detach())


def _write_rows(file: SharedFile, rows: Callable[[str, int, int], Tensor], tensors: Tensors, ranks: Ranks) -> None:
    """Writes this rank's rows of a file's tensors; rank 0 writes what every rank has whole.

    rows: a tensor's rows from one number up to another, by its name. tensors: see `Tensors`.
    """
    from primecli.parallel import sharding

    if ranks.first:
        file.create()
    ranks.wait_for_all()
    with file.open() as writer:
        for name in file.tensors:
            start, stop = sharding.window(tensors[name], ranks)
            values = rows(name, start, stop)  # by every rank, since it may be an exchange
            if stop > start and (ranks.first or sharding.is_spread(tensors[name])):
                writer.write(name, values, start)


def _write_moments(path: Path, trained: Tensors, moments: Mapping[str, Tensor], ranks: Ranks) -> None:
    owners = {name: trained[name.rpartition(".")[0]] for name in moments}
    entries = {name: (tuple(owner.shape), "float32") for name, owner in owners.items()}
    file = SharedFile(path, entries, alignment=ALIGNMENT)
    _write_rows(file, lambda name, start, stop: moments[name], owners, ranks)


def _write_base(path: Path, frozen: Tensors, source: Path | None, ranks: Ranks) -> None:
    """Writes the frozen parameters, in bfloat16 where no rank's rows lose anything by it."""
    import torch

    if source is not None:
        if ranks.first:
            checkpoints.link_base(source / TRAINER_DIRECTORY / BASE, path)
        return
    half = {name: lora.compact(_own(tensor)).dtype == torch.bfloat16 for name, tensor in frozen.items()}
    everywhere = ranks.gather(half)
    dtypes = {
        name: torch.bfloat16 if all(part[name] for part in everywhere) else tensor.dtype
        for name, tensor in frozen.items()
    }
    _write(path, frozen, dtypes, ranks)


def _exported_parameters(model: Any) -> dict[str, Any]:
    """The parameters of the exported model, without adapters; names as in its files."""
    return {name: value for name, value in lora.parameters(model).items() if ".lora_" not in name}


def _merged(model: Any, name: str, scales: Mapping[str, float]) -> Tensor:
    """This rank's rows of a parameter with its adapter, if it has one, merged. Every rank has to call it."""
    parameters = lora.parameters(model)
    own = _own(parameters[name])
    stem = name.removesuffix("weight")
    a = parameters.get(f"{stem}lora_A.weight")
    if a is None:
        return own
    b = _own(parameters[f"{stem}lora_B.weight"])
    return lora.merged_weight(own, _whole(a.detach()), b, scales[stem.removesuffix(".")])


def _whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor, from all ranks."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _export(directory: Path, model: Any, dtype: torch.dtype, exact: Container[str], ranks: Ranks) -> None:
    """Writes the model's files as transformers' save_pretrained does. exact: what stays in float32."""
    parameters, buffers = _exported_parameters(model), stored_buffers(model)
    tensors: dict[str, Any] = {**parameters, **buffers}
    dtypes = {
        name: dtype if tensor.is_floating_point() and name not in exact else tensor.dtype
        for name, tensor in tensors.items()
    }
    scales = lora.scales(model)

    def rows(name: str, start: int, stop: int) -> Tensor:
        return buffers[name] if name in buffers else _merged(model, name, scales)

    parts = list(_files(tensors, dtypes))
    for number, names in enumerate(parts, start=1):
        file_name = "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        entries = {name: (tuple(tensors[name].shape), torch_name(dtypes[name])) for name in names}
        _write_rows(SharedFile(directory / file_name, entries, FORMAT), rows, tensors, ranks)
    if ranks.first:
        if len(parts) > 1:
            _write_index(directory, parts, sum(_bytes(tensors[name], dtypes[name]) for name in tensors))
        config = copy.deepcopy(model.config)
        config.dtype, config.architectures = torch_name(dtype), [type(model).__name__]
        config.save_pretrained(directory)


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    return int(tensor.numel()) * dtype.itemsize


def _files(tensors: Tensors, dtypes: Mapping[str, torch.dtype]) -> Iterator[list[str]]:
    """The names of the tensors in each file of the exported model."""
    names: list[str] = []
    total = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor, dtypes[name])
        if names and total + size > LARGEST_FILE:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _write_index(directory: Path, parts: Sequence[Sequence[str]], total: int) -> None:
    files = {
        name: f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        for number, names in enumerate(parts, start=1)
        for name in names
    }
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}, indent=2)
    (directory / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _export_whole(directory: Path, model: Any, dtype: torch.dtype, exact: Container[str], ranks: Ranks) -> None:
    """Writes a model that transformers stores under other names than it computes with: rank 0 gathers all of it.

    exact: what stays in float32.
    """
    from transformers import GenerationConfig

    scales = lora.scales(model)
    state: dict[str, Tensor] = {}
    for name, parameter in _exported_parameters(model).items():
        merged = _merged(model, name, scales)
        whole = _gathered_rows(merged, parameter, ranks)
        if ranks.first:
            state[name] = whole.to("cpu", whole.dtype if name in exact else dtype)
    if ranks.first:
        for name, buffer in stored_buffers(model).items():
            casts = buffer.is_floating_point() and name not in exact
            state[name] = buffer.to("cpu", dtype if casts else buffer.dtype)
        model.config.dtype = torch_name(dtype)
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        model.save_pretrained(directory, state_dict=state)
        (directory / GENERATION_CONFIG).unlink(missing_ok=True)


def _gathered_rows(own: Tensor, like: Any, ranks: Ranks) -> Tensor:
    """All rows of a tensor of which each rank has some. like: the parameter that says how they are spread."""
    from torch.distributed.tensor import DTensor

    from primecli.parallel import sharding

    if not sharding.is_spread(like):
        return own
    whole: Tensor = DTensor.from_local(
        own.contiguous(), like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    ).full_tensor()
    return whole
