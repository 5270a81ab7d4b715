"""Tensors mapped from files: when their pages are read, and when this process gets copies of its own.

safetensors maps a file privately: a page is read when it is first used, and copied when it is first written to; the
file stays as it is. A mapping keeps its file's contents after the file has been removed or replaced by another.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WILL_NEED, POPULATE_WRITE = 3, 23  # Linux's advice to madvise

ALIGNMENT = 64
"""Bytes at whose multiples torch puts a tensor. At other addresses a product of matrices may be rounded differently."""


def read_ahead(tensors: Iterable[Tensor]) -> None:
    """Has the system read the pages of mapped tensors from the disk meanwhile; does nothing to others."""
    _advise(tensors, WILL_NEED)


def copy_pages(tensors: Iterable[Tensor]) -> None:
    """Copies the pages of mapped tensors at once, where writing to them would copy page by page, half as fast.

    Linux knows how since 5.14; elsewhere the pages are copied when they are written to.
    """
    _advise(tensors, POPULATE_WRITE)


def _advise(tensors: Iterable[Tensor], advice: int) -> None:
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if madvise is None:
        return
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, stop in _ranges(tensors):
        madvise(start, stop - start, advice)  # advice that is not taken changes nothing


def _ranges(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """The pages of CPU tensors as ranges of addresses, those that touch joined."""
    page = mmap.PAGESIZE
    places = sorted(
        (tensor.data_ptr() // page * page, -(-(tensor.data_ptr() + tensor.nbytes) // page) * page)
        for tensor in tensors
        if tensor.device.type == "cpu" and tensor.nbytes
    )
    while places:
        start, stop = places.pop(0)
        while places and places[0][0] <= stop:
            stop = max(stop, places.pop(0)[1])
        yield start, stop


def aligned(tensor: Tensor) -> Tensor:
    """The tensor where it is at a multiple of `ALIGNMENT`, else a copy that is."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
