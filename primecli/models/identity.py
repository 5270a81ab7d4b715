"""Which model a name means, and the identity of its weights, tokenizer and trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primecli.errors import InputError, first_line
from primecli.files import file_hash, fingerprint, read_json

TRAINER_DIRECTORY = "trainer"
TRAINER_FILE = "primecli.json"
NOT_OF_THE_WEIGHTS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")


def resolve_model(name: str) -> Path:
    """The local directory of a model: `name` itself, or the hub's snapshot of that id.

    Raises InputError where there is neither, or where the directory holds no safetensors weights.
    """
    directory = Path(name)
    if not directory.is_dir():
        directory = _snapshot(name)
    for needed, what in (("config.json", "config.json"), ("*.safetensors", "weights (*.safetensors)")):
        if not any(directory.glob(needed)):
            raise InputError(f"{name}: a model directory without {what}", "a checkpoint directory is meant")
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
            f"{name}: no such directory here, and the hub did not give a model of that id: {first_line(error)}"
        ) from error


def is_checkpoint(directory: Path) -> bool:
    """Whether an update made this model directory: it has the trainer's record beside the weights."""
    return (directory / TRAINER_DIRECTORY / TRAINER_FILE).exists()


def model_fingerprint(directory: Path) -> str:
    """Identity of a model's weights: the hash that its checkpoint records, else that of its safetensors files."""
    if is_checkpoint(directory):
        return str(read_trainer_record(directory)["weights"])
    return weights_fingerprint(directory)


def weights_fingerprint(directory: Path) -> str:
    """Hash over a directory's safetensors files, and over what config.json says of how they compute."""
    try:
        config = read_json(directory / "config.json")
        settings = {key: value for key, value in config.items() if key not in NOT_OF_THE_WEIGHTS}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{directory / 'config.json'}: cannot be read: {error}") from error
    files = {path.name: file_hash(path) for path in sorted(directory.glob("*.safetensors"))}
    return fingerprint({"config": settings, "files": files})


def trainer_fingerprint(directory: Path) -> str | None:
    """Identity of what a checkpoint holds besides its weights, as its record has it; None for a plain model."""
    if not is_checkpoint(directory):
        return None
    record = read_trainer_record(directory)
    return fingerprint([record.get("stage"), record["step"], record.get("fingerprint")])


def trained_with(directory: Path) -> dict[str, Any]:
    """The options of the update that made a checkpoint; none for a plain model."""
    if not is_checkpoint(directory):
        return {}
    return dict(read_trainer_record(directory).get("recipe", {}).get("config", {}))


def signature(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of a model's files: tells cheaply whether it is still the one that was looked at."""
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.json")])
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def tokenizer_fingerprint(directory: Path) -> str:
    """Hash of what decides how prompts are tokenised and where a response ends."""
    names = ("tokenizer*.json", "*.model", "vocab*", "merges.txt", "*.jinja", "generation_config.json")
    files = sorted({path for name in names for path in directory.glob(name)})
    if not (directory / "generation_config.json").exists():
        files.append(directory / "config.json")  # then the stop tokens come from there
    return fingerprint({path.name: file_hash(path) for path in files})


def read_trainer_record(directory: Path) -> dict[str, Any]:
    """`trainer/primecli.json` of a checkpoint. Raises InputError where it cannot be read."""
    path = directory / TRAINER_DIRECTORY / TRAINER_FILE
    try:
        record = read_json(path)
        record["weights"], record["step"], record["lineage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error!r}", "the checkpoint is damaged") from error
    return dict(record)
