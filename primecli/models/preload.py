"""Models that load while a stage waits for its first shard.

    early = Preloader(threads=None)
    for shard in run.shards(needs, while_idle=lambda: early.begin([(directory, "float32")])):
        model = early.load(directory, placement)  # the preloaded one, or loads it now

They load in a thread, so that a stage does not wait for them if it turns out not to need them (its output exists
already, or its reader has gone). They load into CPU memory, since the previous stage may use the GPU until its shards
are done.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError
from primecli.models import loading
from primecli.models.device import Placement, resolve_placement, set_threads
from primecli.models.identity import signature

if TYPE_CHECKING:
    import torch

# Of the available memory: the stages before this one are at work, and others wait with models of their own.
SHARE_OF_MEMORY = 0.25


class Preloader:
    """Loads models ahead of time and hands out each of them once.

    threads: the stage's option. load: as `loading.load_model`.
    """

    def __init__(self, threads: int | None, load: Callable[..., Any] = loading.load_model) -> None:
        self._threads = threads
        self._load = load
        self._thread: threading.Thread | None = None
        self._loaded: list[_Loaded] = []
        self._error: Exception | None = None

    def begin(self, models: Sequence[tuple[Path | str, str]], *, to_train: Path | None = None) -> None:
        """Imports what models need, then starts to load the models whose directories exist.

        It loads none if they would take more than `SHARE_OF_MEMORY` of the available memory. models: directories, each
        with its dtype. to_train: one more, of a model that is to be trained.
        """
        loading.warm_imports()  # not in the thread, since two threads that import can block each other
        trained = [] if to_train is None else [_Wanted(to_train, "float32", to_train=True)]
        wanted = [*trained, *(_Wanted(Path(name), dtype) for name, dtype in models)]
        present = [each for each in wanted if each.directory.is_dir()]
        needed = sum(_most_bytes(each.directory) for each in present)
        if present and needed < SHARE_OF_MEMORY * available_bytes():
            # a daemon thread: the process does not wait for it when it ends
            self._thread = threading.Thread(target=self._run, args=(present,), daemon=True)
            self._thread.start()

    def _run(self, models: Sequence[_Wanted]) -> None:
        try:
            set_threads(self._threads)
            with _one_thread():
                for each in models:
                    earlier, placement = signature(each.directory), resolve_placement("cpu", each.dtype)
                    model = self._load(each.directory, placement, **_kind(each.to_train))
                    self._loaded.append(_Loaded(each.directory, earlier, placement.dtype, each.to_train, model))
        except (PrimecliError, FileNotFoundError):
            return  # the checkpoint may be being replaced; if something is wrong with it, `load` will say so
        except Exception as error:
            self._error = error

    def wait(self) -> bool:
        """Waits until nothing is being loaded; returns whether anything was."""
        if self._thread is None:
            return False
        self._thread.join()
        self._thread = None
        return True

    def load(
        self, directory: Path, placement: Placement, *, dtype: torch.dtype | None = None, to_train: bool = False
    ) -> Any:
        """The model of a directory in its current state, as from `loading.load_model`."""
        self.wait()  # for all of them: while transformers loads one, torch's default dtype is not what others expect
        if self._error is not None:
            raise self._error
        key = (directory, dtype or placement.dtype, to_train)
        matches = [each for each in self._loaded if (each.directory, each.dtype, each.to_train) == key]
        if matches:
            self._loaded.remove(matches[0])
        if not matches or matches[0].signature != signature(directory):
            return self._load(directory, placement, dtype=dtype, **_kind(to_train))
        return loading.move(matches[0].model, placement)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Computes in this thread alone: the stages before are at work, and threads that wait for each other slow them.

    The number is that of this thread and of those that are yet to start; the others keep theirs.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A model to load ahead: its directory, the dtype of its parameters, and whether it is to be trained."""

    directory: Path
    dtype: str
    to_train: bool = False


def _kind(to_train: bool) -> dict[str, bool]:
    return {"to_train": True} if to_train else {}


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A model that was loaded ahead.

    directory: where it was loaded from.
    signature: names, sizes and times of the files there, from before they were read (`identity.signature`).
    dtype: of its parameters.
    to_train: whether these are the ones that it is trained on.
    model: the model, on the CPU.
    """

    directory: Path
    signature: Any
    dtype: torch.dtype
    to_train: bool
    model: Any


def _most_bytes(directory: Path) -> int:
    """The most memory that a directory's weights can take: twice their files, when 16 bits are loaded as 32."""
    return 2 * sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def available_bytes() -> int:
    """Memory that can be allocated without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
