"""Writing of a checkpoint by one process: while one thread writes masters and moments, another exports the model."""

from __future__ import annotations

import copy
import errno
import hashlib
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.files import HASH_DIGITS, Json
from primecli.models import checkpoints, lora
from primecli.models.checkpoints import BASE, GENERATION_CONFIG, MASTER, OPTIMIZER
from primecli.models.direct import names_in, stored_buffers
from primecli.models.identity import TRAINER_DIRECTORY
from primecli.models.mapped import ALIGNMENT
from primecli.models.slices import SharedFile, TensorFiles, torch_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = "model.safetensors"
FORMAT = {"format": "pt"}  # what transformers says in a model's files, and wants to read there
LARGEST_FILE = 50 * 10**9  # bytes; transformers spreads a larger model over several files


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
) -> None:
    """Writes a checkpoint into an empty directory. The model cannot be used after that.

    moments: the optimizer's tensors, by the name under which they are stored. source: what the model was loaded from.
    same_base: its adapters are those of `source`, trained further. record: what trainer/primecli.json holds besides the
    weights' fingerprint and lineage. lineage: that of `source`. steps: metrics of each optimizer step.
    """
    from safetensors import SafetensorError

    try:
        in_model, hashes = _save_tensors(directory, model, moments, source, same_base)
    except SafetensorError as error:
        code = errno.ENOSPC if "os error 28" in str(error) or "No space left" in str(error) else errno.EIO
        raise OSError(code, str(error)) from error
    checkpoints.complete(directory, source, record, lineage, steps, master_in_model=in_model, hashes=hashes)


def _save_tensors(
    directory: Path, model: Any, moments: Mapping[str, Tensor], source: Path, same_base: bool
) -> tuple[bool, dict[str, str]]:
    """Writes all tensors of a checkpoint.

    Returns whether the exported model is the only copy of its parameters, and the hashes that are known of its files.
    """
    import torch

    trainer = directory / TRAINER_DIRECTORY
    trainer.mkdir()
    dtype, adapted = checkpoints.stored_dtype(source), lora.has_adapters(model)
    # without adapters every parameter is saved, even those that a model keeps frozen
    kept = _detached(lora.trained(model) if adapted else lora.parameters(model))
    may_be_exported = dtype == torch.float32 and not adapted
    with _writing() as writer:
        if not may_be_exported:
            writer.begin(trainer / MASTER, kept)
        writer.begin(trainer / OPTIMIZER, _detached(moments))
        if adapted:
            _save_base(trainer / BASE, model, source if same_base else None, writer)
            lora.merge(model)
        exact = checkpoints.kept_in_float32(model, source, dtype)
        hashes = _export(directory, model, source, dtype, exact, writer)
        if hashes is not None:
            return may_be_exported, hashes
        _export_by_transformers(directory, model, dtype, exact)
        if not may_be_exported:
            return False, {}
        # transformers stores some architectures under other names or in other shapes than it computes with
        exported = checkpoints.exported(directory)
        if all(name in exported and _same_numbers(exported[name], tensor) for name, tensor in kept.items()):
            return True, {}
        writer.begin(trainer / MASTER, kept)
        return False, {}


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, whatever happens to the parameters that they are of."""
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _save_base(path: Path, model: Any, source: Path | None, writer: _Writer) -> None:
    """Writes the frozen parameters, or links them to those of the checkpoint that they come from."""
    if source is not None:
        checkpoints.link_base(source / TRAINER_DIRECTORY / BASE, path)
    else:
        writer.begin(path, {name: lora.compact(value) for name, value in _detached(lora.frozen(model)).items()})


def _export(
    directory: Path, model: Any, source: Path, dtype: torch.dtype, exact: Container[str], writer: _Writer
) -> dict[str, str] | None:
    """Writes the model's files as transformers' save_pretrained would, from its parameters as they are; their hashes.

    None, and nothing is written, for a model whose file would be too large, or whose source does not store it under the
    names and in the shapes of its parameters. exact: what stays in float32.
    """
    tensors = {**dict(model.named_parameters()), **stored_buffers(model)}
    with TensorFiles(sorted(source.glob("*.safetensors"))) as files:
        names = names_in(files, model)
    dtypes = {
        name: dtype if tensor.is_floating_point() and name not in exact else tensor.dtype
        for name, tensor in tensors.items()
    }
    if names.keys() != tensors.keys() or sum(t.numel() * dtypes[n].itemsize for n, t in tensors.items()) > LARGEST_FILE:
        return None
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = torch_name(dtypes[first]), [type(model).__name__]
    config.save_pretrained(directory)
    entries = {name: (tuple(tensor.shape), torch_name(dtypes[name])) for name, tensor in tensors.items()}
    digest = hashlib.sha256()
    SharedFile(directory / WEIGHTS, entries, FORMAT).write_whole(tensors.__getitem__, writer.check, digest)
    return {WEIGHTS: digest.hexdigest()[:HASH_DIGITS]}


def _export_by_transformers(directory: Path, model: Any, dtype: torch.dtype, exact: Container[str]) -> None:
    """Casts the model, all but `exact`, and has transformers save it."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in exact}  # float32 still
    model = model.to(dtype)
    for name, tensor in tensors.items():
        _replace(model, name, tensor)
    # the source's own file is copied; transformers refuses to write one with settings that contradict each other
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    (directory / GENERATION_CONFIG).unlink(missing_ok=True)


def _replace(model: Any, name: str, tensor: Tensor) -> None:
    """Gives a parameter or buffer other numbers, of another dtype."""
    parent, _, last = name.rpartition(".")
    module = model.get_submodule(parent)
    if last in module._buffers:
        module._buffers[last] = tensor
    else:
        module._parameters[last].data = tensor


def _same_numbers(stored: Tensor, tensor: Tensor) -> bool:
    import torch

    return stored.dtype == tensor.dtype and torch.equal(stored, tensor.cpu())


class _StoppedError(Exception):
    """Another thread has failed, or was interrupted."""


class _Writer:
    """Writes files one after another in a thread."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._begun: list[Future[None]] = []
        self._stopped = threading.Event()

    def begin(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Starts to write a file of the trainer: the tensors as they are, aligned as in memory, to be mapped."""
        entries = {name: (tuple(tensor.shape), torch_name(tensor.dtype)) for name, tensor in tensors.items()}
        file = SharedFile(path, entries, alignment=ALIGNMENT)
        self._begun.append(self._threads.submit(file.write_whole, tensors.__getitem__, self.check))

    def check(self) -> None:
        """Raises an exception if there is no use in writing on."""
        if self._stopped.is_set() or any(each.done() and each.exception() is not None for each in self._begun):
            raise _StoppedError

    def stop(self) -> None:
        """Ends what is being written."""
        self._stopped.set()

    def wait(self) -> None:
        """Waits until everything is written. Raises what the thread has raised."""
        for each in self._begun:
            each.result()


@contextmanager
def _writing() -> Iterator[_Writer]:
    """A writer, whose files are complete when the block ends. Its errors are raised before any of the block's."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="primecli-save") as threads:
        writer = _Writer(threads)
        try:
            yield writer
            writer.wait()
        except _StoppedError:
            writer.wait()
            raise
        except BaseException:
            writer.stop()
            raise
