"""Causal language models: finding, loading, identifying them, and token log-probabilities in bounded memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError, UsageError
from primecli.files import file_hash, fingerprint, read_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

TRAINER_DIRECTORY = "trainer"
TRAINER_FILE = "primecli.json"
NOT_OF_THE_WEIGHTS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
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
    """Where and in what precision a model computes.

    dtype: of products; parameters that are trained stay float32 (`autocast` makes the difference).
    """

    device: torch.device
    dtype: torch.dtype

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


def placement(device: str, dtype: str) -> Placement:
    """`auto` is the GPU where there is one. dtype: as `resolve_dtype` gives it."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return Placement(place, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype])


def load_model(directory: Path, place: Placement, *, dtype: torch.dtype | None = None) -> Any:
    """A causal LM in evaluation mode (dropout off, also when it is trained), on its device.

    dtype: of its parameters; that of `place` when None. Raises InputError where it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or place.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory}: cannot be loaded as a causal language model: {_first_line(error)}") from error
    except SafetensorError as error:
        raise InputError(f"{directory}: damaged weights: {_first_line(error)}") from error
    model = move(model, place).eval()
    check_head(model, directory)
    return model


def move(model: Any, place: Placement) -> Any:
    """The model on its device; running out of memory is one line."""
    import torch

    try:
        return model.to(place.device)
    except torch.OutOfMemoryError as error:
        raise PrimecliError(f"the model does not fit on {place.device}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_head(model: Any, directory: Path) -> None:
    """Checks on a probe that the model's logits are those of its head on its last hidden states.

    Some architectures scale or cap logits after the head; their log-probabilities would be wrong. Raises
    PrimecliError for them.
    """
    import torch

    from primecli.core.logprobs import token_logprobs

    ids = torch.arange(1, 9, device=model.device)[None, :] % model.config.vocab_size
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


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts with their responses, as token ids.

    prompt_ids, response_ids: one int32 array a row. temperature: (B,), by which logits are divided.
    """

    prompt_ids: Sequence[np.ndarray]
    response_ids: Sequence[np.ndarray]
    temperature: np.ndarray | None = None

    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and response."""
        return [
            len(prompt) + len(response) for prompt, response in zip(self.prompt_ids, self.response_ids, strict=True)
        ]


def sequence_logprobs(model: Any, place: Placement, sequences: Sequences, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every response token of some rows, in one forward pass.

    Rows are filled at the right; a causal model's real tokens do not see the filling. Logits are made for
    response tokens only, and a chunk at a time. Returns two (N,) tensors, nats, rows one after another.
    """
    import numpy as np
    import torch

    from primecli.core.logprobs import token_logprobs

    prompts = [sequences.prompt_ids[row] for row in rows]
    responses = [sequences.response_ids[row] for row in rows]
    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    words = model.get_input_embeddings().num_embeddings
    for row, tokens in zip([*rows, *rows], [*prompts, *responses], strict=True):
        if tokens.min() < 0 or tokens.max() >= words:
            raise InputError(
                f"row {row} holds the token id {tokens.max() if tokens.max() >= words else tokens.min()}, and "
                f"{type(model).__name__} has {words} tokens",
                "the rollouts are of a model with another tokenizer",
            )
    ids = np.zeros((len(rows), width), dtype=np.int64)  # (B, T)
    places = []
    for place_in_batch, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[place_in_batch, : len(prompt)] = prompt
        ids[place_in_batch, len(prompt) : len(prompt) + len(response)] = response
        # the state at place t predicts token t + 1
        places.append(place_in_batch * width + np.arange(len(prompt) - 1, len(prompt) + len(response) - 1))
    flat = torch.from_numpy(np.concatenate(places)).to(place.device)
    targets = torch.from_numpy(np.concatenate(responses).astype(np.int64)).to(place.device)
    heat = None
    if sequences.temperature is not None:
        per_row = np.repeat(sequences.temperature[list(rows)], [len(response) for response in responses])
        heat = torch.from_numpy(per_row).to(place.device)
    with place.autocast():
        hidden = model.base_model(input_ids=torch.from_numpy(ids).to(place.device), use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        states = hidden.reshape(-1, hidden.shape[-1])[flat]  # (N, D)
    result = token_logprobs(states, head.weight, targets, bias=head.bias, temperature=heat)
    return result.logprobs, result.entropy


def score(
    model: Any,
    place: Placement,
    sequences: Sequences,
    *,
    token_budget: int,
    done: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Log-probability of every response token, without gradient: (N,) float32, rows one after another.

    token_budget: tokens of a micro-batch, filling included. `done` hears how many rows were finished.
    """
    import numpy as np
    import torch

    from primecli.core.ragged import micro_batches

    lengths = [len(response) for response in sequences.response_ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty(starts[-1], dtype=np.float32)
    with torch.inference_mode(), reporting_memory():
        for rows in micro_batches(sequences.lengths(), token_budget):
            logprobs, _ = sequence_logprobs(model, place, sequences, rows)
            pieces = torch.split(logprobs.float().cpu(), [lengths[row] for row in rows])
            for row, piece in zip(rows, pieces, strict=True):
                values[starts[row] : starts[row + 1]] = piece.numpy()
            done(len(rows))
    return values


@contextlib.contextmanager
def reporting_memory() -> Iterator[None]:
    """Turns running out of memory into one line that says what to lower."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise PrimecliError(f"out of memory: {_first_line(error)}", "lower --micro-batch-tokens") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise PrimecliError(f"out of memory: {_first_line(error)}", "lower --micro-batch-tokens") from error


def set_threads(threads: int | None) -> None:
    """CPU threads of this process: `threads`, else OMP_NUM_THREADS or torch's own choice."""
    import torch

    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
