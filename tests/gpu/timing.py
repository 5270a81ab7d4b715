"""Time, memory and kernels on a device."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.benchmarks.measuring import peak_mib

if TYPE_CHECKING:
    import torch

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bf16, from the makers' data sheets
KERNELS = 10  # that a profile names
GIB = 2**30


def data_sheet(card: str) -> float | None:
    """A card's FLOP/s in bfloat16 as its maker has them, None where they are not known.

    >>> data_sheet("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    return next((peak for part, peak in PEAKS.items() if part in card), None)


def wait(device: torch.device) -> None:
    """Waits until the GPU has finished its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long the work takes; waits for the GPU before and after."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The median of several runs, after one to warm up."""
    work()
    return statistics.median(seconds_of(work, device) for _ in range(repeats))


def reset_memory(device: torch.device) -> None:
    """Releases unused memory, and resets the peak."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """The most memory that tensors took since `reset_memory`; on a CPU, that the process ever took."""
    import torch

    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else peak_mib() / 1024


def reserved_gib(device: torch.device) -> float:
    """The most memory that torch's allocator took for them, fragmentation included."""
    import torch

    return torch.cuda.max_memory_reserved(device) / GIB if device.type == "cuda" else peak_mib() / 1024


def matmul_rate(device: torch.device, *, tiny: bool) -> float:
    """FLOP/s of a large product of matrices in bfloat16, the best of three."""
    import torch

    size, repeats = (256, 2) if tiny else (8192, 20)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(left, right)

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    return float(2 * size**3 * repeats / min(seconds_of(multiply, device) for _ in range(3)))


def largest_kernels(work: Callable[[], object], device: torch.device) -> list[tuple[str, float]]:
    """The kernels that take most of the device's time, each with its share of it; on a CPU, the operators."""
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]) as profiler:
        work()
        wait(device)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0.0) + spent
    total = sum(times.values()) or 1.0
    return [(name, spent / total) for name, spent in sorted(times.items(), key=lambda one: -one[1])[:KERNELS]]


class MemoryPoller:
    """Polls how much of a GPU's memory is taken by all processes together. On a CPU it does nothing."""

    def __init__(self, device: torch.device, every: float = 0.02) -> None:
        self.device = device
        self.every = every
        self.samples: list[tuple[float, int]] = []  # time.time(), bytes taken
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryPoller:
        if self.device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        import torch

        while not self._stop.wait(self.every):
            free, total = torch.cuda.mem_get_info(self.device)
            self.samples.append((time.time(), total - free))
