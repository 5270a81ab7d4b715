"""What `primecli doctor` checks of this installation: versions, devices, memory, disk, the sandbox, extras.

Each check is a generator, so that a result is known as soon as it is there. None of them touches the network or
changes anything.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import primecli
from primecli.setup.disk_needs import disk_needs, free_bytes, size

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "note", "failed"]

DISTRIBUTION = "primecli-rl"  # the name that pip knows this package by
OLDEST_PYTHON = (3, 11)
IMPORTED = ("torch", "transformers", "pyarrow", "math_verify")  # large enough to be installed and still be broken
DISTRIBUTIONS = {"math_verify": "math-verify"}  # where the name differs from that of the package
LITTLE_DISK_GIB = 5.0  # a small model's checkpoint, with moments and master weights, takes as much
LITTLE_MEMORY_GIB = 4.0
GIB = 1 << 30
LONGEST_LINE = 300  # characters of an error message


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    name: what was checked, such as memory.
    status: `ok`; `note`, which is good to know; `failed`, which keeps stages from working.
    found: what it found, such as `12.3 GiB free of 16.0`.
    hint: what to do about it.
    """

    name: str
    status: Status
    found: str
    hint: str | None = None


def versions() -> Iterator[Check]:
    """Python, and primecli itself."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Check("python", "failed", f"{version}, {sys.executable}", f"primecli needs Python {oldest} or newer")
    else:
        yield Check("python", "ok", f"{version}, {sys.executable}")
    yield Check("primecli", "ok", f"{primecli.__version__}, {package_directory()}")


def package_directory() -> Path:
    """The directory of the package `primecli`."""
    return Path(primecli.__file__).parent


def packages() -> Iterator[Check]:
    """The runtime dependencies: whether the required versions are installed, and the large ones can be imported."""
    requirements = _requirements()
    if not requirements:
        yield Check("packages", "note", "primecli is running without being installed", "pip install -e .")
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed_version(requirement.name)
        if version is None:
            yield Check(requirement.name, "failed", "not installed", _install(requirement))
        elif not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}, but {requirement.specifier} is required"
            yield Check(requirement.name, "failed", found, _install(requirement))
        else:
            problem = _import_problem(requirement.name)
            yield Check(requirement.name, "failed" if problem else "ok", problem or version)


def _requirements() -> list[Requirement]:
    """What primecli requires, extras included; empty if it is not installed."""
    from packaging.requirements import Requirement

    distribution = installed_distribution()
    return [Requirement(line) for line in (distribution and distribution.requires) or []]


def installed_distribution() -> metadata.Distribution | None:
    """The installed primecli; None if it runs without being installed."""
    try:
        return metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def _install(*requirements: Requirement) -> str:
    """The command that installs these packages in the required versions."""
    return f"pip install {shlex.join(str(line).partition(';')[0].strip() for line in requirements)}"


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _import_problem(distribution: str) -> str | None:
    """Why one of the large packages cannot be imported; None if it can, and for all other packages."""
    name = next((name for name in IMPORTED if DISTRIBUTIONS.get(name, name) == distribution), None)
    if name is None:
        return None
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken installation can raise anything
        return f"cannot be imported: {type(error).__name__}: {one_line(str(error))}"
    return None


def processor() -> Iterator[Check]:
    """Cores, and whether the stages of a pipeline would compete for them."""
    cores = usable_cores()
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores for this process, OMP_NUM_THREADS {threads or 'not set'}"
    if threads is None:
        hint = "the stages of a pipeline run at the same time, each with one thread per core: on a CPU, export "
        yield Check("cpu", "note", found, f"{hint}OMP_NUM_THREADS=1, or a few more if there are many cores")
    elif threads.isdigit() and int(threads) > cores:
        yield Check("cpu", "note", found, f"more threads than cores are slow: export OMP_NUM_THREADS={max(1, cores)}")
    else:
        yield Check("cpu", "ok", found)


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = kernel_file("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def kernel_file(path: str) -> str:
    """A file of the kernel's, below /proc or /sys; empty if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def memory() -> Iterator[Check]:
    """Free memory, within the limit of the container if there is one."""
    lines = re.findall(r"(\w+):\s+(\d+) kB", kernel_file("/proc/meminfo"))
    sizes = {name: int(kilobytes) << 10 for name, kilobytes in lines}
    if "MemAvailable" not in sizes:
        return
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    limit = kernel_file("/sys/fs/cgroup/memory.max")
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    if limit.isdigit() and int(limit) < total:
        free = min(free, int(limit) - int(kernel_file("/sys/fs/cgroup/memory.current") or 0))
        found = f"{free / GIB:.1f} GiB free of the container's {int(limit) / GIB:.1f}"
    if free < LITTLE_MEMORY_GIB * GIB:
        hint = "training takes 16 bytes per parameter, and the stages run at the same time"
        yield Check("memory", "note", found, hint)
    else:
        yield Check("memory", "ok", found)


def accelerators() -> Iterator[Check]:
    """GPUs as torch sees them, or a driver that torch cannot use."""
    try:
        import torch
    except Exception:  # reported by `packages`
        return
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            found = f"{name}, {free / GIB:.1f} GiB free of {total / GIB:.1f}, CUDA {torch.version.cuda}"
            yield Check(f"gpu {number}", "ok", found)
    elif shutil.which("nvidia-smi") is not None:
        build = (
            "is built without CUDA" if torch.version.cuda is None else f"(CUDA {torch.version.cuda}) finds no device"
        )
        hint = "install a CUDA build of torch, see https://pytorch.org, or look at the output of nvidia-smi"
        yield Check("gpu", "note", f"nvidia-smi is installed, but torch {build}", hint)
    else:
        yield Check("gpu", "ok", "none: everything runs on the CPU")


def collectives() -> Iterator[Check]:
    """What the ranks of an update would talk to each other with."""
    try:
        import torch
        from torch import distributed
    except Exception:  # reported by `packages`
        return
    if not distributed.is_available():
        hint = "updates run as one process; install a build of torch with torch.distributed for more"
        yield Check("collectives", "note", "this torch has no torch.distributed", hint)
        return
    if torch.cuda.is_available():
        if distributed.is_nccl_available():
            version = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
            yield Check("collectives", "ok", f"NCCL {version}, between GPUs")
        else:
            hint = "install a CUDA build of torch, see https://pytorch.org"
            yield Check("collectives", "note", "gloo only: this torch has no NCCL, so GPUs exchange data slowly", hint)
    elif distributed.is_gloo_available():
        yield Check("collectives", "ok", "gloo, between processes on the CPU")
    else:
        yield Check("collectives", "note", "this torch has neither NCCL nor gloo", "updates run as one process")


def ray_cluster() -> Iterator[Check]:
    """Whether Ray is there, for --ray. It starts and joins no cluster."""
    version = _installed_version("ray")
    if version is None:
        yield Check("ray", "note", "not installed: --ray spreads stages over machines", "pip install ray")
    else:
        yield Check("ray", "ok", f"{version}, for --ray")


def disk() -> Iterator[Check]:
    """Space where stages write: in the current directory and in that of temporary files."""
    directories = {"disk": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    for name, directory in directories.items():
        free = shutil.disk_usage(directory).free / GIB
        found = f"{free:.1f} GiB free in {directory}"
        if not os.access(directory, os.W_OK):
            yield Check(name, "note", f"{found}, which is not writable", "change to a directory that you can write to")
        elif free < LITTLE_DISK_GIB:
            yield Check(name, "note", found, "a checkpoint takes up to 14 bytes per parameter")
        else:
            yield Check(name, "ok", found)


def disk_for_training(model: str) -> Iterator[Check]:
    """Whether the checkpoints of the loop fit on the disk of the current directory. model: a directory or hub id."""
    needs, free, name = disk_needs(model), free_bytes(Path.cwd()), "disk for training"
    if needs is None:
        hint = "download the model first, or name its directory: the sizes come from its files"
        yield Check(name, "note", f"{model}: no readable safetensors files on this machine", hint)
    elif free < needs.at_once():
        found = f"{needs.in_words()}; {size(free)} free in {Path.cwd()}"
        yield Check(name, "note", found, "train with --lora-rank, or on another disk (RUN=DIR)")
    else:
        yield Check(name, "ok", f"{needs.in_words()}; {size(free)} free in {Path.cwd()}")


def sandbox() -> Iterator[Check]:
    """Whether bubblewrap can run a model's programs; math needs no sandbox."""
    from primecli.verifiers.sandbox.process import INSTALL, bwrap_problem

    problem = bwrap_problem()
    if problem is None:
        version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False).stdout.strip()
        yield Check("sandbox", "ok", f"{version} can start a process in its own namespaces")
        return
    hint = f"{INSTALL} (only needed to verify code)" if shutil.which("bwrap") is None else _namespace_hint()
    yield Check("sandbox", "note", problem, hint)


def _namespace_hint() -> str:
    """What to do about a kernel that refuses bubblewrap, by its settings for user namespaces."""
    if kernel_file("/proc/sys/user/max_user_namespaces") == "0":
        return "user namespaces are off: sysctl user.max_user_namespaces=15000"
    if kernel_file("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are for root only: sysctl kernel.unprivileged_userns_clone=1"
    if kernel_file("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor restricts user namespaces: give bwrap a profile that allows userns"
    return "a container must permit user namespaces; `verify --sandbox limits` works without them, but is less safe"


def extras() -> Iterator[Check]:
    """The optional extras, and whether they are installed."""
    requirements = _requirements()
    distribution = installed_distribution()
    names = distribution.metadata.get_all("Provides-Extra") if distribution else []
    for extra in sorted(names or []):
        if extra == "dev":
            continue
        of_extra = [line for line in requirements if line.marker and line.marker.evaluate({"extra": extra})]
        of_extra = [line for line in of_extra if line.marker and not line.marker.evaluate({"extra": ""})]
        versions = {line.name: _installed_version(line.name) for line in of_extra}
        missing = [line for line in of_extra if versions[line.name] is None]
        if missing:
            found = f"{', '.join(line.name for line in missing)} not installed"
            yield Check(f"[{extra}]", "note", found, _install(*missing))
        else:
            yield Check(f"[{extra}]", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def one_line(text: str) -> str:
    """A text on one line, cut off after LONGEST_LINE characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…"
