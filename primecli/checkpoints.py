"""Checkpoints: what transformers and vLLM load, and `trainer/` with what the next process trains on from.

    config.json, *.safetensors, tokenizer files    the model, in the dtype of the one it started from
    _summary.json                                  what the update did
    trainer/master.safetensors                     parameters in float32
    trainer/optimizer.safetensors                  AdamW's two moments of each parameter, float32
    trainer/primecli.json                          fingerprints, lineage, step, provenance
    trainer/steps.jsonl                            metrics of each optimizer step

Every iteration is a new process: at a learning rate of 1e-6 a bfloat16 reload would round the update away.
Batches are shuffled by (seed, step, epoch), so the step is all the state that randomness has.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.files import Json, write_json_atomically
from primecli.models import TRAINER_DIRECTORY, TRAINER_FILE, model_fingerprint, read_trainer_record, weights_fingerprint

if TYPE_CHECKING:
    import torch

MASTER = "master.safetensors"
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
    """Where training stands. step: optimizer steps taken by this stage; lineage: weights of all ancestors,
    oldest first, this checkpoint's own last."""

    step: int
    lineage: tuple[str, ...]
    provenance: tuple[Mapping[str, Any], ...]
    has_moments: bool


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
    )


def load_master_weights(model: torch.nn.Module, directory: Path, *, of_another_kind: bool = False) -> None:
    """Puts a checkpoint's float32 parameters into the model, where it has them.

    of_another_kind: the checkpoint need not have all of them, as a policy that starts a critic has no value head.
    """
    path = directory / TRAINER_DIRECTORY / MASTER
    if (directory / TRAINER_DIRECTORY / TRAINER_FILE).exists():  # a checkpoint that has lost it is damaged
        import torch

        saved = load_tensors(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if of_another_kind and name not in saved:
                    continue
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
    record: Mapping[str, Json],
    lineage: Sequence[str],
    steps: Sequence[Mapping[str, float]],
) -> None:
    """Writes a checkpoint into an empty directory. The model is cast to its stored dtype on the way: done with it."""
    from safetensors import SafetensorError

    try:
        _save_tensors(directory, model, moments, stored_dtype(source))
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


def _save_tensors(directory: Path, model: Any, moments: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    trainer = directory / TRAINER_DIRECTORY
    trainer.mkdir()
    parameters = dict(model.named_parameters())
    save_file({name: parameter.detach().contiguous() for name, parameter in parameters.items()}, trainer / MASTER)
    save_file(dict(moments), trainer / OPTIMIZER)
    model.to(dtype).save_pretrained(directory)
