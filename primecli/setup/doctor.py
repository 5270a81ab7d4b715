"""What this installation can do: versions, devices, space, the sandbox, extras, and a whole iteration in small.

Nothing here touches the network or changes anything; the iteration runs in a temporary directory.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from primecli import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "note", "failed"]

DISTRIBUTION = "primecli-rl"  # as pip knows this package
OLDEST_PYTHON = (3, 11)
IMPORTED = ("torch", "transformers", "pyarrow", "math_verify")  # what breaks an installation where it is half there
DISTRIBUTIONS = {"math_verify": "math-verify"}
FEW_GIB = 5.0  # of disk; a small model's checkpoint with moments and master weights takes as much
LITTLE_MEMORY_GIB = 4.0
PIPELINE_SECONDS = 600.0
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. status: `failed` stops stages from working, `note` is good to know. hint: what to do."""

    name: str
    status: Status
    found: str
    hint: str | None = None


def checks(*, pipeline: bool = True) -> Iterator[Check]:
    """All checks, each as soon as it is known. pipeline: run the small iteration too, which takes longest."""
    steps: list[Callable[[], Iterator[Check]]] = [
        versions,
        packages,
        processor,
        memory,
        accelerators,
        disk,
        sandbox,
        extras,
    ]
    for step in [*steps, iteration] if pipeline else steps:
        yield from step()


def versions() -> Iterator[Check]:
    """Python, and primecli itself."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        yield Check("python", "failed", f"{version}, {sys.executable}", f"primecli needs Python {wanted} or newer")
    else:
        yield Check("python", "ok", f"{version}, {sys.executable}")
    yield Check("primecli", "ok", f"{__version__}, {Path(__file__).parent}")


def packages() -> Iterator[Check]:
    """Runtime dependencies: the version that primecli asks for, and that the large ones can be imported."""
    requirements = _requirements()
    if not requirements:
        yield Check("packages", "note", "primecli runs without being installed", "pip install -e .")
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, "failed", "is not installed", _install(requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}, and {requirement.specifier} is needed"
            yield Check(requirement.name, "failed", found, _install(requirement))
        else:
            problem = _import_problem(requirement.name)
            yield Check(requirement.name, "failed" if problem else "ok", problem or version)


def _requirements() -> list[Requirement]:
    """What primecli requires, with its extras; nothing where it runs without being installed."""
    from packaging.requirements import Requirement

    distribution = _distribution()
    return [Requirement(line) for line in (distribution and distribution.requires) or []]


def _distribution() -> metadata.Distribution | None:
    """What is installed of primecli; None where it runs without being installed."""
    try:
        return metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def _install(*requirements: Requirement) -> str:
    """The command that installs these, with the versions that primecli asks for."""
    return f"pip install {shlex.join(str(line).partition(';')[0].strip() for line in requirements)}"


def _import_problem(distribution: str) -> str | None:
    """Why a package cannot be imported; None where it can, or where it is too small to break."""
    name = next((name for name in IMPORTED if DISTRIBUTIONS.get(name, name) == distribution), None)
    if name is None:
        return None
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken installation raises anything
        return f"cannot be imported: {type(error).__name__}: {_one_line(str(error))}"
    return None


def processor() -> Iterator[Check]:
    """Cores, and whether the stages of a pipeline would fight for them."""
    cores = usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores for this process, OMP_NUM_THREADS {asked or 'not set'}"
    if asked is None:
        hint = "the stages of a pipeline run beside each other, each with a thread a core: on a CPU export "
        yield Check("cpu", "note", found, f"{hint}OMP_NUM_THREADS=1, or some more where there are many cores")
    elif asked.isdigit() and int(asked) > cores:
        yield Check("cpu", "note", found, f"more threads than cores is slow: export OMP_NUM_THREADS={max(1, cores)}")
    else:
        yield Check("cpu", "ok", found)


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def memory() -> Iterator[Check]:
    """Memory that is free, and the limit of the container where there is one."""
    numbers = {
        name: int(kilobytes) << 10 for name, kilobytes in re.findall(r"(\w+):\s+(\d+) kB", _read("/proc/meminfo"))
    }
    limit = _read("/sys/fs/cgroup/memory.max")
    if "MemAvailable" not in numbers:
        return
    total, free = numbers["MemTotal"], numbers["MemAvailable"]
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    if limit.isdigit() and int(limit) < total:
        free = min(free, int(limit) - int(_read("/sys/fs/cgroup/memory.current") or 0))
        found = f"{free / GIB:.1f} GiB free of the container's {int(limit) / GIB:.1f}"
    if free < LITTLE_MEMORY_GIB * GIB:
        yield Check("memory", "note", found, "training takes 16 bytes a parameter; stages run beside each other")
    else:
        yield Check("memory", "ok", found)


def accelerators() -> Iterator[Check]:
    """GPUs as torch sees them, and a driver that torch cannot use."""
    try:
        import torch
    except Exception:  # said by `packages`
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
        hint = "install a CUDA build of torch, see https://pytorch.org, or look at what nvidia-smi says"
        yield Check("gpu", "note", f"nvidia-smi is there, and torch {build}", hint)
    else:
        yield Check("gpu", "ok", "none: everything runs on the CPU")


def disk() -> Iterator[Check]:
    """Space where stages write: here, and in the directory of temporary files."""
    places = {"disk": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    for name, place in places.items():
        free = shutil.disk_usage(place).free / GIB
        found = f"{free:.1f} GiB free in {place}"
        if not os.access(place, os.W_OK):
            yield Check(name, "note", f"{found}, which cannot be written", "change to a directory of your own")
        elif free < FEW_GIB:
            yield Check(name, "note", found, "a checkpoint takes up to 16 bytes a parameter")
        else:
            yield Check(name, "ok", found)


def sandbox() -> Iterator[Check]:
    """Whether programs of a model can be run in bubblewrap; math needs none."""
    from primecli.verifiers.sandbox.process import INSTALL, bwrap_problem

    problem = bwrap_problem()
    if problem is None:
        version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False).stdout.strip()
        yield Check("sandbox", "ok", f"{version} starts a process in namespaces of its own")
        return
    hint = f"{INSTALL} (only `verify` of code needs it)" if shutil.which("bwrap") is None else _namespaces()
    yield Check("sandbox", "note", problem, hint)


def _namespaces() -> str:
    """What a kernel that refuses bubblewrap says about user namespaces."""
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        return "user namespaces are off: sysctl user.max_user_namespaces=15000"
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are for root only: sysctl kernel.unprivileged_userns_clone=1"
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor restricts user namespaces: give bwrap a profile that allows userns"
    return "a container needs leave for user namespaces; `verify --sandbox limits` does without, and is less safe"


def extras() -> Iterator[Check]:
    """What can be installed besides, and whether it is."""
    lines = _requirements()
    distribution = _distribution()
    names = distribution.metadata.get_all("Provides-Extra") if distribution else []
    for extra in sorted(names or []):
        if extra == "dev":
            continue
        wanted = [line for line in lines if line.marker and line.marker.evaluate({"extra": extra})]
        wanted = [line for line in wanted if line.marker and not line.marker.evaluate({"extra": ""})]
        found = {line.name: _version(line.name) for line in wanted}
        missing = [line for line in wanted if found[line.name] is None]
        if missing:
            names_missing = ", ".join(line.name for line in missing)
            yield Check(f"[{extra}]", "note", f"{names_missing} not installed", _install(*missing))
        else:
            yield Check(f"[{extra}]", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


STAGES = (
    "generate --model model --prompts prompts.jsonl --n 4 --max-tokens 8 --out run/generate",
    "verify --workers 1",
    "filter --accuracy 0 1 --allow-truncated",
    "update-prm --prm model --ref model --checkpoint prm --lr 1e-3",
    "score-prm --prm prm --ref model",
    "compute-advantages",
    "update-policy --policy model --checkpoint policy --lr 1e-3",
)
"""One iteration as processes; what one writes to stdout the next one reads."""


def iteration() -> Iterator[Check]:
    """Makes a tiny random model and runs a whole iteration of real processes on four prompts."""
    name = "iteration"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="primecli-doctor-") as place:
        directory = Path(place)
        try:
            from primecli.setup.tiny_model import make_model

            make_model(directory / "model")
        except Exception as error:  # whatever is broken is the result
            yield Check(name, "failed", f"a tiny model cannot be made: {type(error).__name__}: {_one_line(str(error))}")
            return
        rows = [{"prompt": f"{number}+{number}=", "answer": str(2 * number)} for number in range(4)]
        (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        problem = run_pipeline([stage.split() for stage in STAGES], directory, PIPELINE_SECONDS)
        missing = [file for file in ("prm", "policy") if not (directory / file / "model.safetensors").exists()]
    if problem is None and missing:
        problem = f"no checkpoint in {missing[0]}, though every stage ended well"
    if problem is not None:
        yield Check(name, "failed", problem)
    else:
        seconds = time.monotonic() - started
        yield Check(name, "ok", f"{len(STAGES)} stages on 4 prompts, from a random model, in {seconds:.0f} s")


def run_pipeline(stages: Sequence[Sequence[str]], directory: Path, seconds: float) -> str | None:
    """Runs stages as processes that are piped together; returns the first failure, with its line, or None.

    The user's own PRIMECLI_ variables do not reach them, nor does the network.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRIMECLI_")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if _distribution() is None:  # the directory that primecli was found in is not where the stages run
        paths = [str(Path(__file__).resolve().parents[1]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    deadline = time.monotonic() + seconds
    processes: list[subprocess.Popen[bytes]] = []
    logs = [directory / f"{number}-{stage[0]}.log" for number, stage in enumerate(stages)]
    try:
        for stage, log in zip(stages, logs, strict=True):
            before = processes[-1].stdout if processes else subprocess.DEVNULL
            with open(log, "wb") as words:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "primecli", *stage],
                        cwd=directory,
                        env=environment,
                        stdin=before,
                        stdout=subprocess.PIPE,
                        stderr=words,
                    )
                )
            if len(processes) > 1 and processes[-2].stdout is not None:
                processes[-2].stdout.close()  # so that a stage notices when its reader has gone
        processes[-1].communicate(timeout=seconds)
        for process, stage, log in zip(processes, stages, logs, strict=True):
            if process.wait(max(0.1, deadline - time.monotonic())):
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["without a word"]
                return f"{stage[0]} ended with exit code {process.returncode}: {_one_line(said[-1])}"
    except subprocess.TimeoutExpired:
        running = [stage[0] for stage, process in zip(stages, processes, strict=False) if process.poll() is None]
        return f"{running[0] if running else stages[-1][0]} had not ended after {seconds:.0f} s"
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
    return None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}…"
