"""Parts that do what a part should not: the check has to survive them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.gpu.context import Context


def run(context: Context) -> None:
    """Does what the part's name says."""
    context.report.figure("before", 1.0, "words")
    if context.name == "hang":
        command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        stray = subprocess.Popen(command, start_new_session=True)  # not in the group that is killed
        context.report.note(f"stray {stray.pid}")
        time.sleep(600)
    if context.name == "raise":
        raise ValueError("it raised\non two lines")
    if context.name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    context.report.at_most("small", 2.0 if context.name == "miss" else 0.5, 1.0)
