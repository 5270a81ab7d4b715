"""Causal language models: finding, loading, identifying them, and token log-probabilities in bounded memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError, UsageError
from primecli.files import file_hash, fingerprint, read_json

if TYPE_CHECKING:
    import torch

TRAINER_DIRECTORY = "trainer"
TRAINER_FILE = "primecli.json"
NOT_OF_THE_WEIGHTS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGE_BLOCKS = (1 << 30, 32 << 20)  # bytes: from here on a block is given back; the second is older glibcs' most
HEAD_TOLERANCE = 1e-3  # nats; a head of another form is off by far more, rounding by far less


def warm_imports() -> None:
    """Imports torch and transformers' model classes, which takes seconds; worth doing while waiting."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name}: no such directory here, and the hub did not give a model of that id: {reason}"
        ) from error


def model_fingerprint(directory: Path) -> str:
    """Identity of a model's weights: the hash that its checkpoint records, else that of its safetensors files."""
    record = directory / TRAINER_DIRECTORY / TRAINER_FILE
    if record.exists():
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
    if not (directory / TRAINER_DIRECTORY / TRAINER_FILE).exists():
        return None
    record = read_trainer_record(directory)
    return fingerprint([record.get("stage"), record["step"], record.get("fingerprint")])


def trained_with(directory: Path) -> dict[str, Any]:
    """The options of the update that made a checkpoint; none for a plain model."""
    if not (directory / TRAINER_DIRECTORY / TRAINER_FILE).exists():
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


@dataclass(frozen=True, slots=True)
class Placement:
    """Where, in what precision and how a model computes.

    dtype: of products; parameters that are trained stay float32 (`autocast` makes the difference). packing: whether
    sequences share a row and their prompt, `auto`, `on` or `off`: see `scoring.plan`.
    """

    device: torch.device
    dtype: torch.dtype
    packing: str = "auto"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Runs products in `dtype` where that is not float32."""
        import torch

        if self.dtype == torch.float32:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.dtype):
            yield


def resolve_dtype(device: str, dtype: str) -> str:
    """What `auto` comes to, without importing torch where there is no accelerator to ask about."""
    if dtype != "auto":
        return dtype
    if device == "cpu" or (device == "auto" and sys.platform == "linux" and not _has_accelerator_files()):
        return "float32"
    import torch

    return "bfloat16" if device == "cuda" or torch.cuda.is_available() else "float32"


def _has_accelerator_files() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()


def placement(device: str, dtype: str, packing: str = "auto") -> Placement:
    """`auto` is the GPU where there is one. dtype: as `resolve_dtype` gives it. packing: as in `Placement`."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return Placement(place, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype], packing)


def load_model(directory: Path, place: Placement, *, dtype: torch.dtype | None = None) -> Any:
    """A causal LM in evaluation mode (dropout off, also when it is trained), on its device.

    dtype: of its parameters; that of `place` when None. Raises InputError where it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if place.device.type == "cpu":
        keep_freed_memory()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or place.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory}: cannot be loaded as a causal language model: {first_line(error)}") from error
    except SafetensorError as error:
        raise InputError(f"{directory}: damaged weights: {first_line(error)}") from error
    model = move(model, place).eval()
    check_head(model, directory)
    return model


def load_critic(directory: Path, place: Placement, *, dtype: torch.dtype | None = None) -> Any:
    """A causal LM with a value head, in evaluation mode: transformers' token classifier of one label.

    The head of a model that has none starts at 0, so that an untrained critic expects nothing. Raises InputError where
    it cannot be loaded, or where transformers has no token classifier of its architecture.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        names: set[str] = set()
        for path in directory.glob("*.safetensors"):
            with safe_open(path, framework="pt") as tensors:
                names.update(tensors.keys())
        model = AutoModelForTokenClassification.from_pretrained(
            directory, num_labels=1, dtype=dtype or place.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory}: cannot be loaded as a critic: {first_line(error)}") from error
    except SafetensorError as error:
        raise InputError(f"{directory}: damaged weights: {first_line(error)}") from error
    finally:
        logging.set_verbosity(before)
    if not hasattr(model, "score"):
        raise InputError(f"{directory}: {type(model).__name__} has no value head `score`", "it cannot be a critic yet")
    if "score.weight" not in names:
        with torch.no_grad():
            for parameter in model.score.parameters():
                parameter.zero_()
    return move(model, place).eval()


def move(model: Any, place: Placement) -> Any:
    """The model on its device; running out of memory is one line."""
    import torch

    try:
        return model.to(place.device)
    except torch.OutOfMemoryError as error:
        raise PrimecliError(f"the model does not fit on {place.device}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, its type's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_head(model: Any, directory: Path) -> None:
    """Checks on a probe that the model's logits are those of its head on its last hidden states.

    Some architectures scale or cap logits after the head; their log-probabilities would be wrong. Raises
    PrimecliError for them.
    """
    import torch

    from primecli.core.logprobs import token_logprobs

    ids = torch.arange(1, 9, device=model.device)[None, :] % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        head = model.get_output_embeddings()
        ours = token_logprobs(hidden, head.weight, ids[0], bias=head.bias).logprobs
        theirs = torch.log_softmax(logits.float(), -1).gather(-1, ids[0][:, None]).squeeze(-1)
    if not bool(logits.isfinite().all()):
        raise InputError(f"{directory}: the model's logits are not finite", "its weights are damaged")
    if not torch.allclose(ours, theirs.to(ours.dtype), atol=HEAD_TOLERANCE):
        raise PrimecliError(
            f"{directory}: {type(model).__name__} changes its logits after the head, which is not supported yet"
        )


def set_threads(threads: int | None) -> None:
    """CPU threads of this process: `threads`, else OMP_NUM_THREADS or torch's own choice."""
    import torch

    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Has the C library keep what is freed for what is allocated next, until the process ends.

    glibc would give it back and ask for it again at each step, and the kernel fills every page with zeros anew: 5 to
    10% of a step of a small model on the CPU. Blocks of more than `LARGE_BLOCKS` are given back all the same. Other C
    libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGE_BLOCKS)  # the first that is taken
        mallopt(M_TRIM_THRESHOLD, -1)  # never


@contextlib.contextmanager
def reporting_memory(hint: str = "lower --micro-batch-tokens", what: str = "") -> Iterator[None]:
    """Turns running out of memory into one line that says what to lower. what: that it ran out on, if that is known."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not known:
            raise
        raise PrimecliError(f"out of memory{what and f' on {what}'}: {first_line(error)}", hint) from error
