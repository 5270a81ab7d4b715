"""A stage that waits for its input handles what its workers have done meanwhile."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from primecli.pipeline import pipe
from primecli.pipeline.inputs import Inputs


class Watched:
    """Workers of which one is done after a moment.

    arrived: what was handled.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.arrived: list[str] = []
        self.busy = True
        self.idle_since = time.monotonic()

    def fileno(self) -> int:
        return self.reading

    def handle(self) -> None:
        self.arrived.append(os.read(self.reading, 10).decode())
        self.busy, self.idle_since = False, time.monotonic()


def after(seconds: float, *writes: tuple[int, bytes]) -> threading.Thread:
    def write() -> None:
        for descriptor, data in writes:
            time.sleep(seconds)
            os.write(descriptor, data)
            if data == b"path\n":
                os.close(descriptor)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_what_is_watched_is_handled_before_a_line_comes(stdin: int) -> None:
    watched = Watched()
    thread = after(0.1, (watched.writing, b"done"), (stdin, b"path\n"))
    lines = pipe.stdin_lines(watched=watched)
    assert next(lines) == "path"
    assert watched.arrived == ["done"]
    thread.join()


def test_a_stage_whose_workers_are_busy_does_not_wait(stdin: int, monkeypatch: Any) -> None:
    watched = Watched()
    inputs = Inputs([])
    inputs.watched = watched
    thread = after(0.4, (watched.writing, b"done"), (stdin, b"path\n"))
    next(inputs.paths())
    assert 0.3 < inputs.waited < 0.7  # from the moment on when the work was done
    thread.join()
