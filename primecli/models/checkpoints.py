"""Checkpoints: what transformers and vLLM load, and `trainer/` with what the next process trains on from.

    config.json, *.safetensors, tokenizer files    the model, in the dtype of the one it started from
    _summary.json                                  what the update did
    trainer/master.safetensors                     parameters in float32; with --lora-rank those that are trained
    trainer/base.safetensors                       with --lora-rank: those that stand still, exactly
    trainer/optimizer.safetensors                  AdamW's two moments of each trained parameter, float32
    trainer/primecli.json                          fingerprints, lineage, step, provenance
    trainer/steps.jsonl                            metrics of each optimizer step

Every iteration is a new process: at a learning rate of 1e-6 a bfloat16 reload would round the update away. With LoRA
the model is exported merged, and what it was merged from is in `trainer/`; the base file never changes, so that
checkpoints that follow each other on one disk share it (a hard link), and each is whole without the others.
Batches are shuffled by (seed, step, epoch), so the step is all the state that randomness has.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, UsageError
from primecli.files import Json, write_json_atomically
from primecli.models import lora
from primecli.models.identity import (
    TRAINER_DIRECTORY,
    TRAINER_FILE,
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
    """

    step: int
    lineage: tuple[str, ...]
    provenance: tuple[Mapping[str, Any], ...]
    has_moments: bool
    lora: LoraOptions | None = None
    base: str | None = None


def read_state(directory: Path, stage: str) -> TrainerState:
    """The state of a checkpoint that `stage` trains on; step 0 for a model that it has not trained before.

    A PRM that starts from a policy's checkpoint takes its weights and lineage, not its moments and step.
    """
    if not (directory / TRAINER_DIRECTORY / TRAINER_FILE).exists():
        return TrainerState(0, (model_fingerprint(directory),), (), has_moments=False)
    record = read_trainer_record(directory)
    own = record.get("stage") == stage
    return TrainerState(
        step=int(record["step"]) if own else 0,
        lineage=tuple(record["lineage"]),
        provenance=tuple(record.get("provenance", ())),
        has_moments=own,
        lora=lora.stored_options(record) if own else None,
        base=record["lora"]["base"] if own and record.get("lora") else None,
    )


def check_adapters(directory: Path, stage: str, asked: LoraOptions | None) -> None:
    """Raises UsageError where a checkpoint of this stage was trained with other adapters than those asked for."""
    state = read_state(directory, stage)
    if state.has_moments and state.lora != asked:
        was = f"with {state.lora.in_words()}" if state.lora else "in all its parameters, without --lora-rank"
        now = asked.in_words() if asked else "none was given"
        raise UsageError(
            f"{directory} was trained {was}, and now {now}",
            "give the same, or start anew from a copy of it that has no trainer/",
        )


def load_master_weights(model: torch.nn.Module, directory: Path, *, of_another_kind: bool = False) -> None:
    """Puts a checkpoint's float32 parameters into the model, where it has them; adapters merged.

    of_another_kind: the checkpoint need not have all of them, as a policy that starts a critic has no value head.
    """
    if (directory / TRAINER_DIRECTORY / TRAINER_FILE).exists():  # a checkpoint that has lost it is damaged
        path = directory / TRAINER_DIRECTORY / MASTER
        saved = load_tensors(path)
        options = lora.stored_options(read_trainer_record(directory))
        if options is not None:
            saved = lora.merge_tensors(load_tensors(path.with_name(BASE)), saved, options)
        _fill(model, saved, path, partly=of_another_kind)


def load_parameters(model: Any, directory: Path, state: TrainerState, asked: LoraOptions | None, seed: int) -> None:
    """Puts a checkpoint's float32 numbers in place of those loaded, and adapters where they are asked for.

    state: of that directory, `check_adapters` passed. seed: of adapters that are new.
    """
    assert not state.has_moments or state.lora == asked, "check_adapters() comes first"
    if state.lora is None:
        load_master_weights(model, directory, of_another_kind=not state.has_moments)
    if asked is not None:
        lora.attach(model, asked, seed)
    if state.lora is not None:
        load_adapted(model, directory)


def load_adapted(model: torch.nn.Module, directory: Path) -> None:
    """Puts a checkpoint's parameters into a model with adapters as they are, nothing merged."""
    path = directory / TRAINER_DIRECTORY / MASTER
    _fill(model, {**load_tensors(path.with_name(BASE)), **load_tensors(path)}, path)


def _fill(model: torch.nn.Module, saved: dict[str, torch.Tensor], path: Path, *, partly: bool = False) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in lora.parameters(model).items():
            if not partly or name in saved:
                parameter.copy_(fitting_tensor(saved, name, parameter, path))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's file. Raises InputError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}", "the checkpoint is damaged") from error


def fitting_tensor(saved: dict[str, torch.Tensor], name: str, like: torch.Tensor, path: Path) -> torch.Tensor:
    """One of the tensors of a file. Raises InputError where it is missing or of another shape."""
    tensor = saved.get(name)
    if tensor is None or tensor.shape != like.shape:
        raise InputError(f"{path}: does not fit the model at {name}", "the checkpoint is damaged")
    return tensor


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of a model's weights on disk, by its first floating-point tensor."""
    import torch
    from safetensors import safe_open

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                dtype = names.get(tensors.get_slice(key).get_dtype())
                if dtype is not None:
                    return dtype
    raise InputError(f"{directory}: no floating-point weights")


def save(
    directory: Path,
    model: Any,
    moments: Mapping[str, torch.Tensor],
    *,
    source: Path,
    same_base: bool,
    record: Mapping[str, Json],
    lineage: Sequence[str],
    steps: Sequence[Mapping[str, float]],
) -> None:
    """Writes a checkpoint into an empty directory. The model is cast to its stored dtype on the way: done with it.

    same_base: its adapters are those of the checkpoint `source`, further trained.
    """
    from safetensors import SafetensorError

    try:
        _save_tensors(directory, model, moments, source, same_base)
    except SafetensorError as error:
        code = errno.ENOSPC if "os error 28" in str(error) or "No space left" in str(error) else errno.EIO
        raise OSError(code, str(error)) from error
    for path in sorted(source.iterdir()):
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in NOT_COPIED):
            shutil.copyfile(path, directory / path.name)
    trainer = directory / TRAINER_DIRECTORY
    weights = weights_fingerprint(directory)
    write_json_atomically(trainer / TRAINER_FILE, {**record, "weights": weights, "lineage": [*lineage, weights]})
    (trainer / STEPS).write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    for path in directory.rglob("*.safetensors"):  # safetensors writes them for the owner alone, whatever the umask
        path.chmod((trainer / STEPS).stat().st_mode)


def _save_tensors(
    directory: Path, model: Any, moments: Mapping[str, torch.Tensor], source: Path, same_base: bool
) -> None:
    from safetensors.torch import save_file

    trainer = directory / TRAINER_DIRECTORY
    trainer.mkdir()
    adapted = lora.has_adapters(model)
    kept = lora.trained(model) if adapted else lora.parameters(model)  # some models hold a few of them still
    save_file({name: parameter.detach().contiguous() for name, parameter in kept.items()}, trainer / MASTER)
    save_file(dict(moments), trainer / OPTIMIZER)
    if adapted:
        before = source / TRAINER_DIRECTORY / BASE if same_base else None
        _save_base(trainer / BASE, lora.frozen(model), before)
        lora.merge(model)
    model.to(stored_dtype(source)).save_pretrained(directory)


def _save_base(path: Path, frozen: Mapping[str, torch.nn.Parameter], before: Path | None) -> None:
    from safetensors.torch import save_file

    if before is None:
        save_file({name: lora.compact(value.detach()).contiguous() for name, value in frozen.items()}, path)
        return
    try:
        os.link(before, path)
    except OSError:  # another file system, or one without links
        shutil.copyfile(before, path)
