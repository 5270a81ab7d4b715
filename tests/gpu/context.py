"""What a part is given."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.gpu.result import Report

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Context:
    """What a part is given.

    name: of the part.
    kind: of device, cuda or cpu.
    tiny: whether to use tiny shapes, which only show that the part works.
    work: a directory on disk for this part, removed after it.
    in_memory: another one, in memory if there is room, else on disk, too.
    shared: a directory that later parts see.
    report: where to report results.
    """

    name: str
    kind: str
    tiny: bool
    work: Path
    in_memory: Path
    shared: Path
    report: Report

    @property
    def gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.kind == "cuda"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        import torch

        return torch.device(self.kind, 0) if self.gpu else torch.device("cpu")


def has_room_in_memory(gib: float = 40.0) -> bool:
    """Whether that many GiB of files fit into memory, with as much left for processes."""
    if not os.access(SHARED_MEMORY, os.W_OK) or shutil.disk_usage(SHARED_MEMORY).free < gib * 2**30:
        return False
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return available > 2 * gib * 2**30
