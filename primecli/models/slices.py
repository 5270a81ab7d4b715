"""Safetensors files read and written by rows, so that many ranks share a file and none holds all of it.

A tensor lies in its file row after row, so a rank's rows are one range of bytes. Every rank writes its own ranges of
one file; the result is byte for byte what safetensors would write. `SharedFile.write_whole` is for a process that
writes all of a file: unlike safetensors' own writer, it lets other threads run, and takes the hash on the way.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.files import begin_writing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "bool": "BOOL"}
"""Safetensors' names of dtypes, by torch's."""
AT_ONCE = 16 << 20  # bytes
ORDER = ("I64", "F64", "F32", "BF16", "F16", "BOOL")
"""Safetensors puts the tensors of a file in this order of dtypes, then in that of their names."""


class TensorFiles:
    """The tensors of some safetensors files, by name, read by rows. Use it as a context manager.

    Raises InputError for a file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}  # the open file of each tensor
        from safetensors import SafetensorError, safe_open

        for path in paths:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                self._files.update(dict.fromkeys(file.keys(), file))
            except (OSError, SafetensorError) as error:
                self._stack.close()
                raise InputError(f"{path}: cannot be read: {error}", "the checkpoint is damaged") from error

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.clear()
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype of a tensor, by safetensors' name, such as BF16."""
        return str(self._files[name].get_slice(name).get_dtype())

    def whole(self, name: str) -> Tensor:
        """A tensor as it is stored, mapped from its file."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, as they are stored; a tensor without dimensions is one row."""
        file = self._files[name]
        stored = file.get_slice(name)
        tensor: Tensor = stored[start:stop] if stored.get_shape() else file.get_tensor(name)
        return tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's place in a file. shape: of the whole tensor. dtype: torch's name. start: its first byte."""

    shape: tuple[int, ...]
    dtype: str
    start: int

    def bytes_per_row(self) -> int:
        """Bytes from one row to the next."""
        import torch

        size: int = getattr(torch, self.dtype).itemsize
        return math.prod(self.shape[1:]) * size


@dataclass(slots=True)
class SharedFile:
    """A safetensors file that several ranks write: rank 0 calls `create`, then each writes its rows.

    path: of the file. tensors: shape and dtype (torch's name) of each, by name. metadata: of the file. alignment: bytes
    at a multiple of which the first tensor begins; safetensors itself takes 8.
    """

    path: Path
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    alignment: int = 8
    places: dict[str, Stored] = field(init=False)
    _header: bytes = field(init=False)

    def __post_init__(self) -> None:
        import torch

        entries: dict[str, Any] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        starts, end = {}, 0
        for name in sorted(self.tensors, key=lambda name: (ORDER.index(DTYPES[self.tensors[name][1]]), name)):
            shape, dtype = self.tensors[name]
            size = math.prod(shape) * getattr(torch, dtype).itemsize
            entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            starts[name], end = end, end + size
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % self.alignment)
        self._header = len(text).to_bytes(8, "little") + text
        self._size = len(self._header) + end
        self.places = {
            name: Stored(shape, dtype, len(self._header) + starts[name])
            for name, (shape, dtype) in self.tensors.items()
        }

    _size: int = field(init=False)

    def create(self) -> None:
        """Makes the file, in full length, with its header."""
        with open(self.path, "xb") as file:
            file.write(self._header)
            file.truncate(self._size)

    def write_whole(
        self, read: Callable[[str], Tensor], check: Callable[[], None] = lambda: None, digest: Any | None = None
    ) -> None:
        """Writes the whole file; it is on disk when this returns.

        read: a tensor by its name, on any device; it is converted to the file's dtype. check: called again and again;
        what it raises ends the writing. digest: a hash of hashlib, to which the file's bytes are added.
        """
        done = begun = 0
        with open(self.path, "xb", buffering=0) as file:
            for data in self._parts(read):
                while data:
                    check()
                    written = file.write(data[:AT_ONCE])
                    if digest is not None:
                        digest.update(data[:written])
                    data, done = data[written:], done + written
                    if done - begun >= AT_ONCE:
                        begin_writing(file.fileno(), begun, done - begun)
                        begun = done
            os.fsync(file.fileno())

    def _parts(self, read: Callable[[str], Tensor]) -> Iterator[memoryview]:
        yield memoryview(self._header)
        for name in sorted(self.places, key=lambda name: self.places[name].start):
            yield _bytes_of(read(name), self.places[name].dtype)

    @contextlib.contextmanager
    def open(self) -> Iterator[SharedWriter]:
        """The file, to write rows into; it is on disk when the block ends."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            yield SharedWriter(descriptor, self.places)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class SharedWriter:
    """Writes rows into a `SharedFile` that is open."""

    descriptor: int
    places: Mapping[str, Stored]

    def write(self, name: str, rows: Tensor, start: int) -> None:
        """Writes some rows of a tensor, converted to its dtype. start: the first one's number."""
        place = self.places[name]
        data = _bytes_of(rows, place.dtype)
        offset = place.start + start * place.bytes_per_row()
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            begin_writing(self.descriptor, offset, written)
            data, offset = data[written:], offset + written


def _bytes_of(tensor: Tensor, dtype: str) -> memoryview:
    """A tensor's numbers, converted to a dtype (torch's name), as they lie in a file."""
    import torch

    converted: Tensor = tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
    return memoryview(converted.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def torch_name(dtype: torch.dtype) -> str:
    """A dtype's name without `torch.`.

    >>> import torch
    >>> torch_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
