"""What the helper of `primecli warm` imports before it forks, and which environment variables were read meanwhile."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

IMPORTS = (
    "pyarrow.compute",
    "pyarrow.parquet",
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",  # imports nearly everything that another architecture's module does
    "transformers.models.qwen2.tokenization_qwen2",
    "rich.table",
)
IMPORTS_IF_INSTALLED = ("pandas", "pyarrow.pandas_compat")  # Arrow imports them with its first table


def import_all(command: int, import_primecli: Callable[[], object]) -> set[str]:
    """Imports what stages need; returns the names of the environment variables that were looked up.

    command: pidfd of COMMAND; if it exits meanwhile, so does this process. import_primecli: imports what stages need of
    primecli. Afterwards the process has a single thread.
    """
    # Arrow's allocator would start a thread, and Arrow does not use that allocator unless told to
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    watcher = _ExitWithCommand(command)
    sys.meta_path.insert(0, watcher)
    with recording_environment() as read:
        for name in (*IMPORTS, *filter(importlib.util.find_spec, IMPORTS_IF_INSTALLED)):
            importlib.import_module(name)
        import_primecli()
        # the weight names of all architectures, which transformers computes for the first model it loads: 0.1 s
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2")
    sys.meta_path.remove(watcher)
    if os.fork() == 0:
        os._exit(0)
    os.wait()  # OpenBLAS has now ended its threads, as it does at any fork, and starts none before it computes
    gc.collect()
    gc.freeze()  # otherwise a collection in a child would write to all pages, and so copy them
    return set(read)


class _ExitWithCommand:
    """A finder that finds nothing, but ends this process in the middle of its imports if COMMAND has exited."""

    def __init__(self, command: int) -> None:
        self.poller = select.poll()
        self.poller.register(command, select.POLLIN)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Exits if COMMAND has; Python calls it at every import."""
        if self.poller.poll(0):
            sys.exit(0)


@contextlib.contextmanager
def recording_environment() -> Iterator[set[str]]:
    """Collects the names of the environment variables that Python code looks up meanwhile, set or not."""
    names: set[str] = set()
    encode: Callable[[str], Any] = os.environ.encodekey

    def record(name: str) -> Any:
        if sys._getframe(2).f_code.co_name != "__iter__":  # items() touches all of them; so does tqdm, to find TQDM_*
            names.add(name)
        return encode(name)

    os.environ.encodekey = record
    try:
        yield names
    finally:
        os.environ.encodekey = encode
