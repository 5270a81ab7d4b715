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

from primecli.errors import PrimecliError, UsageError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGE_BLOCKS = (1 << 30, 32 << 20)  # bytes: from here on a block is given back; the second is older glibcs' most


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


def resolve_placement(device: str, dtype: str, packing: str = "auto") -> Placement:
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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, its type's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


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


def peak_memory_gib(place: Placement) -> float:
    """The most memory that this process has held so far, GiB: of the GPU where it computes there, else of the CPU."""
    import resource

    import torch

    if place.device.type == "cuda":
        return torch.cuda.max_memory_allocated(place.device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
