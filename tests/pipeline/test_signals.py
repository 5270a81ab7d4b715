"""A stage that waits for its input wakes up for a signal, whenever that comes."""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from primecli.pipeline import pipe

LIBC = ctypes.CDLL(None)


class Came(Exception):
    """What the handler of these tests raises."""


@pytest.fixture
def handlers() -> Iterator[None]:
    """Gives SIGTERM and SIGUSR1 back what handled them before."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class SignalledPoll:
    """select.poll(), before whose first call a signal comes in the process, too late for Python to handle it first.

    number: of the signal. seen: what each call found, noted before a handler runs.
    """

    def __init__(self, number: int, seen: list[Any]) -> None:
        self.poller = self.poller_of()
        self.number = number
        self.seen = seen
        self.register = self.poller.register

    poller_of = staticmethod(select.poll)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        waiting = functools.partial(self.poller.poll, 5000 if timeout is None else timeout)
        if self.seen:
            return waiting()
        kill = functools.partial(LIBC.kill, os.getpid(), self.number)
        self.seen.extend(map(operator.call, [kill, waiting]))  # C alone, in which no handler in Python can run
        return list(self.seen[1])


def fail(number: int, frame: object) -> None:
    raise Came


def test_a_signal_just_before_the_wait_ends_it(stdin: int, handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(select, "poll", lambda: SignalledPoll(signal.SIGTERM, seen))
    signal.signal(signal.SIGTERM, fail)
    with pytest.raises(Came):
        next(pipe.stdin_lines())
    os.close(stdin)
    assert seen[1], "the wait went on until its time was up"
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_is_handled_changes_nothing(stdin: int, handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    came: list[int] = []
    monkeypatch.setattr(select, "poll", lambda: SignalledPoll(signal.SIGUSR1, seen))
    signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    os.write(stdin, b"path\n")
    assert next(pipe.stdin_lines()) == "path"
    os.close(stdin)
    assert came == [signal.SIGUSR1]


def test_a_thread_reads_without_signals(stdin: int) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(next(pipe.stdin_lines())))
    thread.start()
    os.write(stdin, b"path\n")
    thread.join()
    os.close(stdin)
    assert found == ["path"]
