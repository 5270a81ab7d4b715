"""Where a model computes: device, precision, threads, memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.errors import PrimecliError, UsageError, first_line
from primecli.errors import is_out_of_memory as is_out_of_memory
from primecli.printable import one_line

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
# Bytes. Larger blocks are returned when they are freed; the second is the most that older glibcs accept.
LARGE_BLOCKS = (1 << 30, 32 << 20)
RETURNED_BLOCKS = 512 << 10

# How long to wait for a GPU's memory. A process that ends releases it within seconds; if it keeps running, no wait is
# long enough.
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.25
OWN_OVERHEAD = 1 << 30  # bytes that a process holds on a GPU besides its tensors: above all, CUDA's context

BUSY = "busy or unavailable"
"""Text of the error for a GPU in exclusive mode that another process is using."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where, in what precision and how a model computes.

    device: such as cpu, cuda or cuda:1.
    dtype: of products; parameters that are trained stay float32, and `autocast` makes up the difference.
    packing: whether sequences share a row and their prompt, `auto`, `on` or `off`; see `scoring.plan`.
    compiled: whether layers are compiled; see `compiled.compile_layers`.
    """

    device: torch.device
    dtype: torch.dtype
    packing: str = "auto"
    compiled: bool = False

    @property
    def may_pack(self) -> bool:
        """Whether rows are packed if the model can do that and it pays."""
        return self.packing == "on" or (self.packing == "auto" and self.device.type == "cpu")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Computes products in `dtype` where that is not float32."""
        import torch

        if self.dtype == torch.float32:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.dtype):
            yield

    def for_head(self, states: torch.Tensor) -> torch.Tensor:
        """The last hidden states in the precision in which the head is to compute; it runs outside `autocast`.

        Under autocast, float32 weights give float32 states. The head would then compute in float32, which on a GPU is
        some 15 times slower than bfloat16, and on a CPU with instructions for bfloat16 some 3 times.
        """
        import torch

        return states if self.dtype == torch.float32 else states.to(self.dtype)


def device_problem(name: str) -> str | None:
    """What is wrong with a value of --device; None if nothing is.

    >>> device_problem("cuda:1"), device_problem("gpu")
    (None, "'gpu' is not auto, cpu, cuda or cuda:N")
    """
    known = re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name)
    return None if known else f"{name!r} is not auto, cpu, cuda or cuda:N"


def resolve_dtype(device: str, dtype: str) -> str:
    """The dtype that `auto` stands for; imports torch only where there may be an accelerator to ask about."""
    if dtype != "auto":
        return dtype
    if device == "cpu" or (device == "auto" and sys.platform == "linux" and not _has_accelerator_files()):
        return "float32"
    import torch

    return "bfloat16" if device.startswith("cuda") or torch.cuda.is_available() else "float32"


def count_gpus(device: str) -> int:
    """The GPUs that a device such as `auto` may stand for; imports torch only where there may be any."""
    if device == "cpu" or (device == "auto" and sys.platform == "linux" and not _has_accelerator_files()):
        return 0
    import torch

    return torch.cuda.device_count()


def _has_accelerator_files() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()


def resolve_placement(device: str, dtype: str, packing: str = "auto", *, compiled: bool = False) -> Placement:
    """The placement that the options name; the device `auto` is the GPU where there is one.

    dtype: as `resolve_dtype` returns it. packing, compiled: as in `Placement`. Waits while other processes fill the
    GPU, see `open_device`. Raises UsageError for a device that does not work, PrimecliError for one that stays full.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = torch.device(device)
    try:
        open_device(device, lambda: _touch(resolved))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {first_line(error)}") from error
    return Placement(resolved, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype], packing, compiled)


def _touch(device: torch.device) -> None:
    """Computes a number on the device, and sets what primecli relies on there. Raises what torch raises."""
    import torch

    if device.type != "cuda":
        torch.empty(0, device=device)
        return
    # float32 must not mean TF32, even if TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set, as it is in NVIDIA's containers
    torch.set_float32_matmul_precision("highest")
    # cuDNN's attention builds a plan for every new shape, which takes tens of milliseconds, and ours are ragged
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.cuda.init()  # type: ignore[no-untyped-call]
    if device.index is not None:
        torch.cuda.set_device(device)  # or whatever names no device would open a context on the first GPU too
    torch.zeros(1, device=device).item()


def open_device(
    name: str,
    touch: Callable[[], None],
    *,
    seconds: float = WAIT_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Calls `touch`, again and again for up to `seconds` while it fails because other processes fill the device.

    Prints one line on stderr when it starts to wait. Raises PrimecliError if the device stays full, and any other error
    of `touch` at once.
    """
    waited = 0.0
    while True:
        try:
            return touch()
        except RuntimeError as error:
            if not (is_out_of_memory(error) or BUSY in str(error)):
                raise
            if waited >= seconds:
                raise PrimecliError(
                    f"{name} is full: {first_line(error)}", "`nvidia-smi` lists the processes that use it"
                ) from error
        if not waited:
            _say(f"{name} is full; waiting up to {seconds:.0f} s for other processes to release it")
        sleep(POLL_SECONDS)
        waited += POLL_SECONDS


def _say(text: str) -> None:
    print(f"primecli: {one_line(text)}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of a GPU, bytes.

    total: the size of the memory.
    free: what no process has allocated.
    reserved: what torch's allocator has allocated in this process.
    cached: the part of `reserved` that holds no tensors now.
    """

    total: int
    free: int
    reserved: int = 0
    cached: int = 0

    def others(self) -> int:
        """About how much other processes hold."""
        return max(0, self.total - self.free - self.reserved - OWN_OVERHEAD)


def device_memory(device: torch.device) -> DeviceMemory:
    """The current state of a GPU's memory."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return DeviceMemory(total, free, reserved, reserved - allocated)


def wait_for_memory(
    device: torch.device,
    needed: int,
    *,
    memory: Callable[[], DeviceMemory] | None = None,
    seconds: float = WAIT_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits for up to `seconds` until a GPU has `needed` bytes free, as long as other processes hold them.

    The stages of a pipe use the GPU in turn, and the memory of a process that ends is free only a moment after the next
    stage has read its last line. Prints one line on stderr when it starts to wait. Returns at once on another device,
    if the memory is free, and if waiting cannot help: the allocation that follows then fails with a better message.

    memory: returns the device's memory; called repeatedly.
    """
    if device.type != "cuda":
        return
    waited = 0.0
    while waited <= seconds:
        current = device_memory(device) if memory is None else memory()
        room = current.free + current.cached
        if needed <= room or not current.others() or needed > room + current.others():
            return
        if not waited:
            _say(
                f"{needed / 2**30:.1f} GiB are needed on {device} and {room / 2**30:.1f} are free; waiting up to "
                f"{seconds:.0f} s for other processes to release some of their {current.others() / 2**30:.1f} GiB"
            )
        sleep(POLL_SECONDS)
        waited += POLL_SECONDS


@contextlib.contextmanager
def fitting(device: torch.device) -> Iterator[None]:
    """Turns running out of memory while a model goes to its device into a one-line error."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise PrimecliError(f"the model does not fit on {device}: {first_line(error)}") from error


def free_device_memory(device: torch.device | None = None) -> None:
    """Releases the GPU memory that this process no longer uses, so that other processes can have it.

    CUDA's context, some hundred MiB, stays until the process ends. device: None for whichever is in use.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or (device is not None and device.type != "cuda"):
        return
    gc.collect()  # a model can be part of a reference cycle
    torch.cuda.empty_cache()


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


def return_large_blocks() -> None:
    """Makes the C library return large blocks to the system when they are freed, until the process ends.

    For a rank, which takes and frees the whole matrices of one layer after another. The blocks of other sizes between
    them would keep the freed ones from being used again, and such a process would hold more than twice what it uses.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, RETURNED_BLOCKS)
        mallopt(M_TRIM_THRESHOLD, RETURNED_BLOCKS)


def give_freed_memory_back() -> None:
    """Returns the memory that `keep_freed_memory` keeps to the system, such as that of a model moved to a GPU."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def reporting_memory(hint: str = "lower --micro-batch-tokens", what: str = "") -> Iterator[None]:
    """Turns running out of memory into a one-line error.

    hint: what to change. what: what the memory ran out on, such as "the largest micro-batch", if that is known.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
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
