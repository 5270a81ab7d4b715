"""Which model a name refers to, and the identity of its weights, tokenizer and trainer state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primecli.errors import InputError, first_line
from primecli.files import file_hash, fingerprint, read_json

TRAINER_DIRECTORY = "trainer"
TRAINER_FILE = "primecli.json"
# Settings in config.json that do not change what the weights compute, and are not part of their identity.
NOT_OF_THE_WEIGHTS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")


def resolve_model(name: str) -> Path:
    """The local directory of a model: `name` itself, or the snapshot of the hub's model of that id.

    Raises InputError where there is neither, or where the directory has no config.json or no safetensors weights.
    """
    directory = Path(name)
    if not directory.is_dir():
        directory = _snapshot(name)
    for needed, what in (("config.json", "config.json"), ("*.safetensors", "weights (*.safetensors)")):
        if not any(directory.glob(needed)):
            raise InputError(f"{name}: a model directory without {what}", "give a checkpoint directory")
    return directory


def _snapshot(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{name}: no such model directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
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


def weights_fingerprint(directory: Path) -> str:
    """Hash of a directory's safetensors files and of what config.json says about how to compute with them."""
    try:
        config = read_json(directory / "config.json")
        settings = {key: value for key, value in config.items() if key not in NOT_OF_THE_WEIGHTS}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{directory / 'config.json'}: cannot be read: {error}") from error
    files = {path.name: file_hash(path) for path in sorted(directory.glob("*.safetensors"))}
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
    return dict(read_trainer_record(directory).get("recipe", {}).get("config", {}))


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


def read_trainer_record(directory: Path) -> dict[str, Any]:
    """The contents of a checkpoint's `trainer/primecli.json`. Raises InputError where it cannot be read."""
    path = directory / TRAINER_DIRECTORY / TRAINER_FILE
    try:
        record = read_json(path)
        record["weights"], record["step"], record["lineage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}", "the checkpoint is damaged") from error
    return dict(record)
