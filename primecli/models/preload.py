"""Models that load while a stage waits for its first shard.

    early = Preloader(threads=None)
    for shard in run.shards(needs, while_idle=lambda: early.begin([(directory, "float32")])):
        model = early.load(directory, place)   # the one that has been loaded, or loads it now

They load in a thread, so that a stage that turns out to need none of them (its output is there, its reader has gone)
does not wait for them; and into the CPU's memory, since that of a GPU may be the stage's before until its shards come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError
from primecli.models import loading
from primecli.models.device import Placement, resolve_placement, set_threads
from primecli.models.identity import signature

if TYPE_CHECKING:
    import torch

SHARE_OF_MEMORY = 0.25  # of what is available: the stages before are at work, and others wait with their models


class Preloader:
    """Models that load ahead, each given out once. load: as `models.load_model`. threads: as the stage's option."""

    def __init__(self, threads: int | None, load: Callable[..., Any] = loading.load_model) -> None:
        self._threads = threads
        self._load = load
        self._thread: threading.Thread | None = None
        self._loaded: list[_Loaded] = []
        self._error: Exception | None = None

    def begin(self, wanted: Sequence[tuple[Path | str, str]]) -> None:
        """Imports what models need, then starts to load those that are there. wanted: directories, each with its dtype.

        None where they would take more than `SHARE_OF_MEMORY` of the memory that is available.
        """
        loading.warm_imports()  # here rather than in the thread: two threads that import can get in each other's way
        there = [(Path(name), dtype) for name, dtype in wanted if Path(name).is_dir()]
        needed = sum(_most_bytes(directory) for directory, _ in there)
        if there and needed < SHARE_OF_MEMORY * _available_bytes():
            # a daemon, which the end of the process does not wait for
            self._thread = threading.Thread(target=self._run, args=(there,), daemon=True)
            self._thread.start()

    def _run(self, wanted: Sequence[tuple[Path, str]]) -> None:
        try:
            set_threads(self._threads)
            for directory, dtype in wanted:
                before, place = signature(directory), resolve_placement("cpu", dtype)
                self._loaded.append(_Loaded(directory, before, place.dtype, self._load(directory, place)))
        except (PrimecliError, FileNotFoundError):
            return  # a checkpoint that is being replaced; what is wrong with it in the end, `load` finds
        except Exception as error:
            self._error = error

    def load(self, directory: Path, place: Placement, *, dtype: torch.dtype | None = None) -> Any:
        """The model of a directory as it is now, as `models.load_model` gives it."""
        if self._thread is not None:
            self._thread.join()  # all of it: while transformers loads, torch's default dtype is not what others expect
            self._thread = None
        if self._error is not None:
            raise self._error
        found = [one for one in self._loaded if (one.directory, one.dtype) == (directory, dtype or place.dtype)]
        if not found:
            return self._load(directory, place, dtype=dtype)
        self._loaded.remove(found[0])
        if found[0].signature != signature(directory):
            return self._load(directory, place, dtype=dtype)
        return loading.move(found[0].model, place)


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A model that was loaded ahead.

    directory: where it was loaded from.
    signature: names, sizes and times of the files there, from before they were read (`identity.signature`).
    dtype: of its parameters.
    model: the model, on the CPU.
    """

    directory: Path
    signature: Any
    dtype: torch.dtype
    model: Any


def _most_bytes(directory: Path) -> int:
    """The most that the weights of a directory take: those that are stored in 16 bits take twice their file."""
    return 2 * sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _available_bytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
