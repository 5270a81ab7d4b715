"""Loading and saving: 7B in bfloat16 to the GPU, a checkpoint of 1.5B to the disk and back."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch

from primecli.files import directory_atomically
from primecli.models.device import Placement
from primecli.models.loading import load_model
from primecli.pipeline.recipe import Recipe
from primecli.training.options import TrainingOptions
from primecli.training.trainer import Trainer
from tests.benchmarks.measuring import peak_mib, reset_peak
from tests.gpu.context import Context
from tests.gpu.models import make_config, make_model, write_model
from tests.gpu.timing import GIB, reset_memory, seconds_of

DISK_PROBE = 4 << 30  # bytes
QUICK = 0.6  # GiB/s: a slower disk would take the part's whole time for 7B


def run(context: Context) -> None:
    """The disk's own rate, then loading, then saving; the files of each are gone before the next."""
    rate = measure_disk(context)
    measure_loading(context, from_disk=rate >= QUICK)
    measure_saving(context)


def gib_of(directory: Path) -> float:
    """GiB of all files of a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / GIB


def forget(directory: Path) -> None:
    """Has the system drop what it keeps of files, so that they are read from the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure_disk(context: Context) -> float:
    """Writes and reads a file as fast as the disk takes it. Returns GiB a second that it writes."""
    size = 1 << 20 if context.tiny else DISK_PROBE
    block = os.urandom(1 << 20) * (1 if context.tiny else 64)
    path = context.work / "probe"
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    rate = size / GIB / (time.perf_counter() - start)
    context.report.figure("disk: writing", rate, "GiB/s, with fsync")
    forget(context.work)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(len(block)):
            pass
    context.report.figure("disk: reading", size / GIB / (time.perf_counter() - start), "GiB/s")
    path.unlink()
    return rate


def measure_loading(context: Context, *, from_disk: bool) -> None:
    """load_model of 7B, from the disk and from the system's memory, against safetensors straight to the device."""
    from safetensors.torch import load_file

    report, device = context.report, context.device
    directory = (context.work if from_disk else context.in_memory) / "7B"
    if not from_disk:
        report.note(f"7B was in memory only: the disk writes less than {QUICK} GiB/s")
    model = make_model(make_config("7B", tiny=context.tiny), device, torch.bfloat16)
    start = time.perf_counter()
    write_model(model, directory)
    size = gib_of(directory)
    report.figure("7B: writing it", time.perf_counter() - start, "s", f"{size:.1f} GiB")
    first = next(model.parameters()).clone()
    del model
    placement = Placement(device, torch.bfloat16)

    def load() -> None:
        loaded = load_model(directory, placement)
        same = torch.equal(next(loaded.parameters()), first)
        report.holds("7B: what is loaded is what was written", same, same, "equal bits")

    def load_files() -> None:
        for path in sorted(directory.glob("*.safetensors")):
            load_file(path, device=str(device))

    forget(directory)
    for name, work in (
        ("load_model, from disk", load),
        ("load_model, cached", load),
        ("safetensors alone", load_files),
    ):
        reset_memory(device)
        reset_peak()
        seconds = seconds_of(work, device)
        report.figure(f"7B: {name}", seconds, "s", f"{size / seconds:.2f} GiB/s")
        report.figure(f"7B: {name}, CPU memory", peak_mib() / 1024, "GiB")
    reset_memory(device)
    shutil.rmtree(directory)


def measure_saving(context: Context) -> None:
    """Weights, master weights and moments of 1.5B, as an update writes them; then the next update's start from them."""
    report, device, directory = context.report, context.device, context.work / "1.5B"
    model = make_model(make_config("1.5B", tiny=context.tiny), device, torch.bfloat16)
    write_model(model, directory)
    del model
    reset_memory(device)
    placement = Placement(device, torch.bfloat16 if context.gpu else torch.float32)
    options = TrainingOptions(lr=1e-6)
    trainer = Trainer(directory, placement, options, "update-policy")
    moments = trainer.optimizer.tensors()
    for tensor in moments.values():
        tensor.normal_()
    name, moment = next(iter(moments.items()))
    expected = moment.clone()
    del moments, moment
    reset_peak()
    target = context.work / "saved"

    def save() -> None:
        with directory_atomically(target) as temporary:
            trainer.save(temporary, trainer.record(Recipe("update-policy", {}, {}, [], 0), {}))

    seconds = seconds_of(save, device)
    size = gib_of(target)
    report.figure("1.5B: saving weights, master weights and moments", seconds, "s", f"{size:.1f} GiB")
    report.figure("1.5B: saving", size / seconds, "GiB/s", "the disk's writing")
    report.figure("1.5B: saving, CPU memory", peak_mib() / 1024, "GiB")
    trainer.release()
    forget(target)
    started: list[Trainer] = []
    seconds = seconds_of(lambda: started.append(Trainer(target, placement, options, "update-policy")), device)
    report.figure("1.5B: starting from it", seconds, "s", f"{size / seconds:.2f} GiB/s")
    same = torch.equal(started[0].optimizer.tensors()[name], expected)
    report.holds("1.5B: moments come back", same, same, "equal bits")
