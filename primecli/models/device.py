"""Where a model computes: device, precision, threads, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.errors import PrimecliError, UsageError, first_line

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
# Bytes. Larger blocks are returned when they are freed; the second is the most that older glibcs accept.
LARGE_BLOCKS = (1 << 30, 32 << 20)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where, in what precision and how a model computes.

    device: such as cpu or cuda.
    dtype: of products; parameters that are trained stay float32, and `autocast` makes up the difference.
    packing: whether sequences share a row and their prompt, `auto`, `on` or `off`; see `scoring.plan`.
    """

    device: torch.device
    dtype: torch.dtype
    packing: str = "auto"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Computes products in `dtype` where that is not float32."""
        import torch

        if self.dtype == torch.float32:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.dtype):
            yield


def resolve_dtype(device: str, dtype: str) -> str:
    """The dtype that `auto` stands for; imports torch only where there may be an accelerator to ask about."""
    if dtype != "auto":
        return dtype
    if device == "cpu" or (device == "auto" and sys.platform == "linux" and not _has_accelerator_files()):
        return "float32"
    import torch

    return "bfloat16" if device == "cuda" or torch.cuda.is_available() else "float32"


def _has_accelerator_files() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()


def resolve_placement(device: str, dtype: str, packing: str = "auto") -> Placement:
    """The placement that the options name; the device `auto` is the GPU where there is one.

    dtype: as `resolve_dtype` returns it. packing: as in `Placement`. Raises UsageError for a device that does not work.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {first_line(error)}") from error
    return Placement(resolved, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype], packing)


def set_threads(threads: int | None) -> None:
    """Sets the CPU threads of this process; None leaves them to OMP_NUM_THREADS, or to torch."""
    import torch

    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory for the next allocation, until the process ends.

    By default glibc returns it to the kernel and asks for it again at each step, and the kernel fills every page with
    zeros each time, which takes 5 to 10% of a step of a small model on the CPU. Blocks larger than `LARGE_BLOCKS` are
    still returned. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGE_BLOCKS)  # the first size that this glibc accepts
        mallopt(M_TRIM_THRESHOLD, -1)  # never


@contextlib.contextmanager
def reporting_memory(hint: str = "lower --micro-batch-tokens", what: str = "") -> Iterator[None]:
    """Turns running out of memory into a one-line error.

    hint: what to change. what: what the memory ran out on, such as "the largest micro-batch", if that is known.
    """
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not known:
            raise
        raise PrimecliError(f"out of memory{what and f' on {what}'}: {first_line(error)}", hint) from error


def peak_memory_gib(placement: Placement) -> float:
    """The most memory that this process has held so far, GiB: on the GPU if it computes there, else on the CPU."""
    import resource

    import torch

    if placement.device.type == "cuda":
        return torch.cuda.max_memory_allocated(placement.device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
