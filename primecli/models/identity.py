"""Which model a name refers to, and the identity of its weights, tokenizer and trainer state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Required, TypedDict

from primecli.errors import InputError, first_line
from primecli.files import file_hash, fingerprint, require_regular_file
from primecli.models.fitness import CONVERT_GGUF, check_directory
from primecli.models.known_hashes import known_hash
from primecli.shards.provenance import PRM_PAIR_ACCURACY, StoredRecipe, StoredRecord
from primecli.structures import read_json

TRAINER_DIRECTORY = "trainer"
TRAINER_FILE = "primecli.json"
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
# Settings in config.json that do not change what the weights compute, and are not part of their identity.
NOT_OF_THE_WEIGHTS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")

DAMAGED = "the checkpoint is damaged"


class StoredAdapters(TypedDict):
    """The adapters that a checkpoint was trained with. base: fingerprint of the weights beneath them."""

    lora_rank: int
    lora_alpha: float
    lora_targets: list[str]
    base: str


class TrainerRecord(TypedDict, total=False):
    """What `trainer/primecli.json` holds.

    weights: fingerprint of the checkpoint's weights. step: optimizer steps so far. lineage: fingerprints of the weights
    of all ancestors and its own, oldest first. provenance: the updates that made it, oldest first. master: `model`
    where the float32 parameters are those of the exported model, rather than in a file of their own. own_steps: by
    name, the steps in which a parameter had a gradient, where that was not in all of them.
    """

    weights: Required[str]
    step: Required[int]
    lineage: Required[list[str]]
    stage: str
    version: str
    fingerprint: str
    recipe: StoredRecipe
    provenance: list[StoredRecord]
    master: str
    lora: StoredAdapters
    own_steps: dict[str, int]


def resolve_model(name: str) -> Path:
    """The local directory of a model: `name` itself, or the snapshot of the hub's model of that id.

    Raises InputError where there is neither, or where the directory has no whole model; see `fitness.check_directory`.
    """
    directory = _directory(name)
    check_directory(directory, name)
    return directory


def resolve_tokenizer(name: str) -> Path:
    """As `resolve_model`, for what reads the tokenizer alone: the directory need not have weights."""
    directory = _directory(name)
    if not (directory / "config.json").exists():
        raise InputError(f"{name}: a directory without config.json", "give the directory of a model and its tokenizer")
    return directory


def _directory(name: str) -> Path:
    if name.endswith(".gguf"):
        raise InputError(f"{name}: is GGUF, and primecli loads safetensors", CONVERT_GGUF)
    directory = Path(name)
    if not os.path.isdir(name):
        directory = _snapshot(name)
    for path in (path for pattern in MODEL_FILES for path in sorted(directory.glob(pattern))):
        if path.exists() and not path.is_dir():
            require_regular_file(path)  # here, because the libraries would wait for ever for a pipe
    return directory


def _snapshot(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{name}: no such model directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name}: no such directory, and the hub has not delivered a model of that id: {first_line(error)}"
        ) from error


def is_checkpoint(directory: Path) -> bool:
    """Whether an update made this model directory: it has the trainer's record beside the weights."""
    return (directory / TRAINER_DIRECTORY / TRAINER_FILE).exists()


def model_fingerprint(directory: Path) -> str:
    """Identity of a model's weights: the hash recorded in a checkpoint, else the hash of the safetensors files."""
    if is_checkpoint(directory):
        return str(read_trainer_record(directory)["weights"])
    return weights_fingerprint(directory)


def weights_fingerprint(directory: Path, hashes: Mapping[str, str] | None = None) -> str:
    """Hash of a directory's safetensors files and of what config.json says about how to compute with them.

    hashes: of some of the files, by name, where they are known already.
    """
    config = read_json(directory / "config.json", dict[str, Any])
    settings = {key: value for key, value in config.items() if key not in NOT_OF_THE_WEIGHTS}
    known = hashes or {}
    files = {path.name: known.get(path.name) or known_hash(path) for path in sorted(directory.glob("*.safetensors"))}
    return fingerprint({"config": settings, "files": files})


def trainer_fingerprint(directory: Path) -> str | None:
    """Identity of what a checkpoint holds besides its weights, from its record; None for a plain model."""
    if not is_checkpoint(directory):
        return None
    record = read_trainer_record(directory)
    return fingerprint([record.get("stage"), record["step"], record.get("fingerprint")])


def trained_with(directory: Path) -> dict[str, Any]:
    """The options of the update that made a checkpoint; empty for a plain model."""
    if not is_checkpoint(directory):
        return {}
    return read_trainer_record(directory).get("recipe", {}).get("config", {})


def trained_otherwise(directory: Path, beta: float, objective: str | None) -> str | None:
    """How a PRM was trained, such as "--loss ce --beta 0.05", if that differs from these; else None.

    None, too, for a model that no update-prm has made. objective: None for any.
    """
    trained = trained_with(directory)
    differing = []
    if objective is not None and trained.get("loss", objective) != objective:
        differing.append(f"--loss {trained['loss']}")
    trained_beta = trained.get("beta", beta)
    if isinstance(trained_beta, int | float) and trained_beta != beta:
        differing.append(f"--beta {trained_beta:g}")
    return " ".join(differing) or None


def measured_before_update(directory: Path) -> dict[str, float | None]:
    """What score-prm records of how well a PRM ranked responses that it had not seen; see `PRM_PAIR_ACCURACY`.

    Empty where the update that made the PRM did not measure it. Raises InputError where it is no share.
    """
    if not is_checkpoint(directory):
        return {PRM_PAIR_ACCURACY: None}
    record = read_trainer_record(directory)
    updates = record.get("provenance", []) if record.get("stage") == "update-prm" else []
    for number, update in enumerate(reversed(updates)):
        if number == 0 and PRM_PAIR_ACCURACY not in update:
            return {}
        accuracy = update.get(PRM_PAIR_ACCURACY)
        if accuracy is not None:
            if not 0 <= accuracy <= 1:
                raise InputError(
                    f"{directory / TRAINER_DIRECTORY / TRAINER_FILE}: {PRM_PAIR_ACCURACY} is {accuracy}", DAMAGED
                )
            return {PRM_PAIR_ACCURACY: accuracy}
    return {PRM_PAIR_ACCURACY: None}


def signature(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time of each of a model's files: a cheap way to notice that they were replaced."""
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.json")])
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def tokenizer_fingerprint(directory: Path) -> str:
    """Hash of the files that decide how prompts are tokenised and where a response ends."""
    names = ("tokenizer*.json", "*.model", "vocab*", "merges.txt", "*.jinja", "generation_config.json")
    files = sorted({path for name in names for path in directory.glob(name)})
    if not (directory / "generation_config.json").exists():
        files.append(directory / "config.json")  # which then names the stop tokens
    return fingerprint({path.name: file_hash(path) for path in files})


def read_trainer_record(directory: Path) -> TrainerRecord:
    """The contents of a checkpoint's `trainer/primecli.json`. Raises InputError where it cannot be read."""
    path = directory / TRAINER_DIRECTORY / TRAINER_FILE
    record = read_json(path, TrainerRecord, DAMAGED)
    if record["step"] < 0 or not record["lineage"]:
        what = "step: is negative" if record["step"] < 0 else "lineage: is empty"
        raise InputError(f"{path}: {what}", DAMAGED)
    for name, steps in record.get("own_steps", {}).items():
        if not 0 <= steps <= record["step"]:
            raise InputError(f"{path}: own_steps.{name}: is {steps}, of {record['step']} steps", DAMAGED)
    return record
