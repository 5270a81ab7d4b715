"""Checkpoints: model directories that transformers and vLLM load, with what the next update needs in `trainer/`.

    config.json, *.safetensors, tokenizer files    the model, in the dtype of the one it started from
    _summary.json                                  what the update did
    trainer/master.safetensors                     parameters in float32; with --lora-rank, those that are trained;
                                                   left out where the model above has just these numbers
    trainer/base.safetensors                       with --lora-rank, the frozen parameters, exactly
    trainer/optimizer.safetensors                  AdamW's two moments of each trained parameter, float32
    trainer/primecli.json                          fingerprints, lineage, step, provenance
    trainer/steps.jsonl                            metrics of each optimizer step

Every iteration is a new process, which must continue from the float32 parameters: at a learning rate of 1e-6, reloading
bfloat16 ones would round the update away. With LoRA, the model is exported with its adapters merged, and what it was
merged from is in `trainer/`. The base file never changes, so successive checkpoints on one disk share it by a hard
link, and each is complete without the others. Batches are shuffled by (seed, step, epoch), so randomness has no state
but the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, UsageError
from primecli.files import Json, write_json_atomically
from primecli.models import lora
from primecli.models.identity import (
    TRAINER_DIRECTORY,
    TRAINER_FILE,
    is_checkpoint,
    model_fingerprint,
    read_trainer_record,
    weights_fingerprint,
)
from primecli.models.lora import LoraOptions

if TYPE_CHECKING:
    import torch

MASTER = "master.safetensors"
BASE = "base.safetensors"
OPTIMIZER = "optimizer.safetensors"
STEPS = "steps.jsonl"
GENERATION_CONFIG = "generation_config.json"
IN_MODEL = "model"  # in a checkpoint's record, as `master`: the exported model has the float32 parameters themselves

NOT_COPIED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.msgpack",
    "*.h5",
    "config.json",
    "_summary.json",
    "README.md",
    ".*",
)


@dataclass(frozen=True, slots=True)
class TrainerState:
    """How far a checkpoint has been trained.

    step: optimizer steps that this stage has taken, over all its processes.
    lineage: fingerprints of the weights of all ancestors, oldest first, this checkpoint's own last.
    provenance: the records of the updates that made it, oldest first.
    has_moments: whether it holds this stage's optimizer moments.
    lora: the adapters that this stage trained it with; None for all parameters.
    base: fingerprint of the weights beneath the adapters; None without adapters.
    own_steps: by name, the steps in which a parameter had a gradient, where that was not in all of them.
    """

    step: int
    lineage: tuple[str, ...]
    provenance: tuple[Mapping[str, Any], ...]
    has_moments: bool
    lora: LoraOptions | None = None
    base: str | None = None
    own_steps: Mapping[str, int] = field(default_factory=dict)


def read_state(directory: Path, stage: str) -> TrainerState:
    """The state of a checkpoint that `stage` continues from; step 0 for a model that this stage has not trained before.

    A PRM that starts from a policy's checkpoint inherits its weights and lineage, but not its moments and step.
    """
    if not is_checkpoint(directory):
        return TrainerState(0, (model_fingerprint(directory),), (), has_moments=False)
    record = read_trainer_record(directory)
    same_stage = record.get("stage") == stage
    return TrainerState(
        step=int(record["step"]) if same_stage else 0,
        lineage=tuple(record["lineage"]),
        provenance=tuple(record.get("provenance", ())),
        has_moments=same_stage,
        lora=lora.stored_options(record) if same_stage else None,
        base=record["lora"]["base"] if same_stage and record.get("lora") else None,
        own_steps=record.get("own_steps", {}) if same_stage else {},
    )


def check_adapters(directory: Path, stage: str, asked: LoraOptions | None) -> None:
    """Raises UsageError where this stage trained the checkpoint with other adapters than those asked for."""
    state = read_state(directory, stage)
    if state.has_moments and state.lora != asked:
        was = f"with {state.lora.in_words()}" if state.lora else "in all its parameters, without --lora-rank"
        now = asked.in_words() if asked else "no --lora-rank"
        raise UsageError(
            f"{directory} was trained {was}, but this run has {now}",
            "give the same options, or start over from a copy of it without trainer/",
        )


def masters(directory: Path) -> Path | None:
    """The file of the float32 parameters that a checkpoint was trained on; None for a plain model.

    None, too, where the exported model has just these numbers, and where it was trained by adapters.
    """
    if not is_checkpoint(directory):
        return None
    record = read_trainer_record(directory)
    if record.get("master") == IN_MODEL or lora.stored_options(record) is not None:
        return None
    return directory / TRAINER_DIRECTORY / MASTER  # if it is missing, the checkpoint is damaged


def load_masters(model: torch.nn.Module, directory: Path) -> None:
    """Copies the parameters of `masters` into a model, where there are any.

    A critic that starts from a policy keeps its value head.
    """
    path = masters(directory)
    if path is not None:
        saved = load_tensors(path)
        heads = {name for name in lora.parameters(model) if name.startswith(f"{lora.HEAD}.")}
        _copy_into(model, saved, path, optional=heads)


def load_merged(model: torch.nn.Module, directory: Path) -> None:
    """Copies the float32 parameters of a checkpoint that was trained by adapters into a model, the adapters merged.

    Does nothing for others. A critic that starts from a policy keeps its value head.
    """
    options = lora.stored_options(read_trainer_record(directory)) if is_checkpoint(directory) else None
    if options is not None:
        path = directory / TRAINER_DIRECTORY / MASTER
        saved = lora.merge_tensors(load_tensors(path.with_name(BASE)), load_tensors(path), options)
        _copy_into(model, saved, path, optional=set(lora.parameters(model)) - set(saved))


def load_parameters(model: Any, directory: Path, state: TrainerState, asked: LoraOptions | None, seed: int) -> None:
    """Gives a model that was loaded to train what its adapters have been trained to, and those that are asked for.

    state: that of the directory, which has passed `check_adapters`. seed: for the initial values of new adapters.
    """
    assert not state.has_moments or state.lora == asked, "check_adapters() comes first"
    if state.lora is None:
        load_merged(model, directory)
    if asked is not None:
        lora.attach(model, asked, seed)
    if state.lora is not None:
        load_adapted(model, directory)


def load_adapted(model: torch.nn.Module, directory: Path) -> None:
    """Copies a checkpoint's base parameters and adapters into a model with adapters, without merging them."""
    path = directory / TRAINER_DIRECTORY / MASTER
    _copy_into(model, {**load_tensors(path.with_name(BASE)), **load_tensors(path)}, path)


def exported(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of the model that a checkpoint exports, from all its files."""
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_tensors(path).items()
    }


def _copy_into(
    model: torch.nn.Module, saved: dict[str, torch.Tensor], path: Path, *, optional: Collection[str] = ()
) -> None:
    """optional: names of parameters that keep their values where the file has none."""
    import torch

    with torch.no_grad():
        for name, parameter in lora.parameters(model).items():
            if name not in optional or name in saved:
                parameter.copy_(fitting_tensor(saved, name, parameter, path))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one of a checkpoint's files. Raises InputError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "the checkpoint is damaged") from error


def fitting_tensor(saved: dict[str, torch.Tensor], name: str, like: torch.Tensor, path: Path) -> torch.Tensor:
    """The tensor of that name from a file. Raises InputError where it is missing or has another shape than `like`."""
    tensor = saved.get(name)
    if tensor is None or tensor.shape != like.shape:
        raise InputError(f"{path}: does not fit the model at {name}", "the checkpoint is damaged")
    return tensor


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of a model's weights on disk: that of its first floating-point tensor."""
    import torch
    from safetensors import safe_open

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                dtype = names.get(tensors.get_slice(key).get_dtype())
                if dtype is not None:
                    return dtype
    raise InputError(f"{directory}: holds no floating-point weights")


def kept_in_float32(model: Any, source: Path, dtype: torch.dtype) -> set[str]:
    """Names of the parameters and buffers that an export in 16 bits keeps in float32, such as the biases of routers.

    They are those that `source` stores so, and those that transformers loads so in any case. dtype: of the export.
    """
    import torch
    from safetensors import safe_open

    if dtype.itemsize != 2:
        return set()
    wide: set[str] = set()
    for path in source.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            wide.update(key for key in tensors.keys() if tensors.get_slice(key).get_dtype() == "F32")  # noqa: SIM118
    always = [re.compile(rf"(^|\.){re.escape(name)}(\.|$)") for name in model._keep_in_fp32_modules_strict or ()]
    return {
        name
        for name, tensor in (*lora.parameters(model).items(), *model.named_buffers())
        if tensor.dtype == torch.float32 and (name in wide or any(pattern.search(name) for pattern in always))
    }


def complete(
    directory: Path,
    source: Path,
    record: Mapping[str, Json],
    lineage: Sequence[str],
    steps: Sequence[Mapping[str, float]],
    *,
    master_in_model: bool,
    hashes: Mapping[str, str] | None = None,
) -> None:
    """Adds to a checkpoint all that is no tensor; the arguments are those of `saving.save`.

    master_in_model: whether the exported model is the only copy of its parameters. hashes: of files of the exported
    model, by name, where they are known.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in NOT_COPIED):
            shutil.copyfile(path, directory / path.name)
    trainer = directory / TRAINER_DIRECTORY
    weights = weights_fingerprint(directory, hashes or {})
    where = {"master": IN_MODEL} if master_in_model else {}
    identity = {"weights": weights, "lineage": [*lineage, weights]}
    write_json_atomically(trainer / TRAINER_FILE, {**record, **where, **identity})
    (trainer / STEPS).write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    # safetensors makes its files readable by the owner only, whatever the umask
    for path in directory.rglob("*.safetensors"):
        path.chmod((trainer / STEPS).stat().st_mode)


def link_base(previous: Path, path: Path) -> None:
    """Makes an earlier checkpoint's base file this one's too, by a hard link where that is possible."""
    try:
        os.link(previous, path)
    except OSError:  # on another file system, or one without hard links
        shutil.copyfile(previous, path)
