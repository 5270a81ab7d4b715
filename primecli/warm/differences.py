"""Why the helper of `primecli warm` may have to refuse a stage: what differs from its imports, what forbids a fork."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("numpy", "pyarrow", "torch", "transformers")

READ_BY_LIBRARIES = (
    *("PYTHON", "LC_", "LANG", "LD_", "GLIBC_", "MALLOC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_"),
    *("ATEN_", "TORCH_", "PYTORCH_", "CUDA_", "NCCL_", "ARROW_", "JE_ARROW_", "MIMALLOC_", "TQDM_"),
)
"""Prefixes of variables that libraries read while they are loaded, in C or by going through all variables."""

MAY_DIFFER = frozenset(
    {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "COLUMNS", "LINES", "PWD", "OLDPWD", "SHLVL", "_", "PYTHON"}
)
"""Variables that a child can still adopt, or that only shells and Makefiles read. A library may remember the terminal's
size from its import (accelerate's menus do), but no output of a stage depends on that."""

OF_LAUNCHERS = frozenset(
    {
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    }
)
"""Variables that torch's launcher sets for a rank, besides those in TORCHELASTIC_. They are read when the ranks find
each other, not by imports."""


def files_on_disk(package: Path = PACKAGE) -> list[tuple[str, int, int]]:
    """Name, size and modification time of primecli's modules and of each library's main file.

    Another list later means that the code has changed. package: the directory of primecli.
    """
    paths = sorted(package.rglob("*.py"))
    specs = [importlib.util.find_spec(name) for name in LIBRARIES]
    paths += [Path(spec.origin) for spec in specs if spec and spec.origin]
    files = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            files.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    return files


def differing_variable(ours: Mapping[str, str], theirs: Mapping[str, str], read: set[str]) -> str | None:
    """The first variable that differs and that an import has read, as part of a sentence; None if there is none.

    ours: the environment of the imports. theirs: that of the front. read: the names that were looked up.

    >>> differing_variable({"HF_HUB_OFFLINE": "1", "SEED": "0"}, {"SEED": "1"}, {"HF_HUB_OFFLINE"})
    'HF_HUB_OFFLINE is unset here and 1 in the helper'
    """
    for name in sorted({*ours, *theirs} - MAY_DIFFER - OF_LAUNCHERS):
        if name.startswith("TORCHELASTIC_"):
            continue
        if ours.get(name) != theirs.get(name) and (name in read or name.startswith(READ_BY_LIBRARIES)):
            return f"{name} is {theirs.get(name, 'unset')} here and {ours.get(name, 'unset')} in the helper"
    threads = theirs.get("OMP_NUM_THREADS")
    if threads != ours.get("OMP_NUM_THREADS") and not (threads and threads.isdecimal() and int(threads)):
        return f"OMP_NUM_THREADS is {threads or 'unset'} here, which a running process cannot adopt"
    return None


def fork_problem() -> str | None:
    """Why this process must not fork a stage; None if it may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the helper has {threads} threads"
    if sys.modules["torch"].cuda.is_initialized():
        return "the helper has initialised CUDA"
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(("/dev/nvidia", "/dev/kfd")):
                return "the helper has opened a GPU"
    return None
