"""Workers for tests of `pipeline.workers`: they import nothing large, and do what a word says."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from primecli.errors import GateError, InputError


class SmallWorker:
    """Does an item, a tuple of a word and its argument; returns it with the process's number.

    label: part of what it returns, to see that it was opened with it.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self.prepared = False

    def prepare(self) -> None:
        self.prepared = True

    def work(self, item: tuple[str, Any], advance: Callable[[int], None]) -> Any:
        word, argument = item
        advance(3)
        if word == "sleep":
            time.sleep(argument)
        if word == "die" and not _seen(argument):  # the first time, or the first few
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "die always":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "input error":
            raise InputError(f"{argument}: is broken", "make it again")
        if word == "gate":
            raise GateError("too far off")
        if word == "bug":
            raise _Foreign(argument, 1)
        if word == "memory":
            raise MemoryError
        if word == "print":
            print(argument)
            os.write(1, b"to the descriptor\n")
            return sys.stdin.read() if sys.stdin else None
        if word == "environment":
            return os.environ.get(argument)
        if word == "large":
            return b"x" * argument
        return argument, self.label, os.getpid()


class _Foreign(Exception):
    """An exception that cannot be unpickled, as libraries have them."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)


def _seen(path: Path) -> bool:
    """Whether the file exists; makes it."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


def open_small(label: str = "") -> SmallWorker:
    return SmallWorker(label)


def open_broken() -> SmallWorker:
    raise InputError("ckpt: no such model")


def open_dying() -> SmallWorker:
    os._exit(3)
