"""Exiting without the interpreter's own clean-up."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys


class QuickExit:
    """Ends the process, once its exit code is known, without taking its modules apart.

    With torch that takes a quarter of a second, frees only what the kernel frees anyway, and could crash a thread that
    is still loading a model. Create it before anything else registers itself with `atexit`: then it is called last.

    code: the exit code; None until it is known, and then Python exits as usual.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        atexit.register(self)

    def __call__(self) -> None:
        """Ends the process, unless buffered output cannot be written: then Python has to report that."""
        if self.code is None:
            return
        with contextlib.suppress(OSError):
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os._exit(self.code)
