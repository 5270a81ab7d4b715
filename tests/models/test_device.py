from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from primecli.errors import PrimecliError, UsageError
from primecli.models.device import (
    DeviceMemory,
    Placement,
    is_out_of_memory,
    open_device,
    reporting_memory,
    resolve_dtype,
    resolve_placement,
    wait_for_memory,
)

GIB = 1 << 30
CUDA = torch.device("cuda", 0)

needs_mallopt = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no such setting"
)

BLOCKS = """
import ctypes, resource
from primecli.models.device import give_freed_memory_back, keep_freed_memory, return_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def take_and_free():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [libc.malloc(16 << 20) for _ in range(8)]  # more than glibc keeps by itself
        for block in blocks:
            libc.memset(block, 1, 16 << 20)
        for block in blocks:
            libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024
"""


def run_blocks(script: str) -> list[int]:
    """The numbers that a process prints which takes and frees 128 MiB."""
    command = [sys.executable, "-c", BLOCKS + script]
    return [int(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


@needs_mallopt
def test_freed_memory_is_used_again() -> None:
    without, kept = run_blocks("without = take_and_free(); keep_freed_memory(); take_and_free()\n"
                               "print(without, take_and_free())")  # fmt: skip
    assert kept < 100 < without


@needs_mallopt
def test_freed_memory_that_is_kept_can_be_given_back() -> None:
    before, kept, after = run_blocks(
        "keep_freed_memory(); before = resident(); take_and_free(); kept = resident(); give_freed_memory_back()\n"
        "print(before, kept, resident())"
    )
    assert kept > before + 100
    assert after < before + 20


@needs_mallopt
def test_a_rank_returns_large_blocks_whatever_was_kept_before() -> None:
    kept, after = run_blocks(
        "keep_freed_memory(); take_and_free(); kept = resident(); give_freed_memory_back(); return_large_blocks()\n"
        "before = resident(); take_and_free(); print(kept, resident() - before)"
    )
    assert kept > 100
    assert after < 20


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_auto_is_bfloat16_on_every_gpu(device: str) -> None:
    assert resolve_dtype(device, "auto") == "bfloat16"
    assert resolve_dtype(device, "float32") == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--device cuda:1: "):
        resolve_placement("cuda:1", "bfloat16")


@pytest.mark.parametrize("device", [CUDA, torch.device("cpu")])
def test_the_head_computes_in_the_precision_of_products(device: torch.device) -> None:
    states = torch.ones(2, 3)
    assert Placement(device, torch.bfloat16).for_head(states).dtype == torch.bfloat16
    assert Placement(device, torch.float32).for_head(states) is states


class Clock:
    """Sleeps without waiting, and counts how long; every `release` seconds something may change."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def failing(clock: Clock, error: Exception, until: float) -> Callable[[], None]:
    """What raises the error until that time."""

    def touch() -> None:
        if clock.now < until:
            raise error

    return touch


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    ],
)
def test_a_gpu_that_is_full_is_waited_for(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    open_device("cuda", failing(clock, error, until=3.0), seconds=10, sleep=clock.sleep)
    assert clock.now == 3.0
    assert capsys.readouterr().err == "primecli: cuda is full; waiting up to 10 s for other processes to release it\n"
    with pytest.raises(PrimecliError, match="cuda is full: CUDA") as raised:
        open_device("cuda", failing(clock, error, until=100.0), seconds=10, sleep=clock.sleep)
    assert not isinstance(raised.value, UsageError)
    assert clock.now == 13.0


def test_another_error_of_a_gpu_is_not_waited_out(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    error = RuntimeError("CUDA error: invalid device ordinal")
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        open_device("cuda:7", failing(clock, error, until=1.0), sleep=clock.sleep)
    assert clock.now == 0
    assert not capsys.readouterr().err


def held_by_others(clock: Clock, gib: float, until: float) -> Callable[[], DeviceMemory]:
    """80 GiB, of which others hold some until that time, and this process its context and 2 GiB, 1 of them cached."""

    def memory() -> DeviceMemory:
        others = int(gib * GIB) if clock.now < until else 0
        return DeviceMemory(total=80 * GIB, free=77 * GIB - others, reserved=2 * GIB, cached=GIB)

    return memory


def test_memory_that_another_process_holds_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    wait_for_memory(CUDA, 60 * GIB, memory=held_by_others(clock, 70, until=4.0), sleep=clock.sleep)
    assert clock.now == 4.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "primecli: 60.0 GiB are needed on cuda:0 and 8.0 are free; waiting up to 120 s for other processes to release "
        "some of their 70.0 GiB"
    ]


def test_the_wait_is_bounded() -> None:
    clock = Clock()
    wait_for_memory(CUDA, 60 * GIB, memory=held_by_others(clock, 70, until=1e9), seconds=5, sleep=clock.sleep)
    assert 5 <= clock.now < 6  # then the allocation says what is wrong


@pytest.mark.parametrize(
    ("device", "needed", "others"),
    [
        ("cpu", 1000 * GIB, 70.0),  # not the GPU's
        ("cuda", 8 * GIB, 70.0),  # there, with what our own allocator has to spare
        ("cuda", 90 * GIB, 70.0),  # never there
        ("cuda", 79 * GIB, 0.0),  # no other process has it
    ],
)
def test_there_is_no_wait_for_what_is_there_or_will_never_be(
    device: str, needed: int, others: float, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    memory = held_by_others(clock, others, until=1e9)
    wait_for_memory(torch.device(device), needed, memory=memory, sleep=clock.sleep)
    assert clock.now == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.13 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] data. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_one_line(error: Exception) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(PrimecliError, match=r"^out of memory on the batch: ") as raised,
        reporting_memory(what="the batch"),
    ):
        raise error
    assert "\n" not in str(raised.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="device-side assert"), reporting_memory():
        raise RuntimeError("CUDA error: device-side assert triggered")
