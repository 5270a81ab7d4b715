"""The process that `GradingPool` starts to grade what may hang or crash.

One JSON object a line: tasks come in on stdin, one report a task goes out on what was stdout. It ends when
stdin closes, and is killed with its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from typing import Any, BinaryIO


def main() -> None:
    """Reads its configuration from the first line of stdin, then grades until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between the reports
    config = json.loads(sys.stdin.buffer.readline() or "null")
    if config is None:
        return
    _die_with_parent(config["parent"])
    try:
        _limit_memory(config["memory_bytes"])
        from primecli.verifiers import build_verifier

        verifier = build_verifier(config["spec"], config["options"])
        if hasattr(verifier, "warm_up"):
            verifier.warm_up()
    except Exception as error:
        _send(out, {"failed": f"{type(error).__name__}: {error}"})
        return
    _send(out, {"ready": True})
    for line in sys.stdin.buffer:
        report = _report(verifier, json.loads(line))
        _send(out, report)
        if "memory" in report:
            return  # the heap is in an unknown state


def _report(verifier: Any, job: dict[str, Any]) -> dict[str, Any]:
    try:
        if job["kind"] == "probe":
            verifier.probe(job["ground_truth"])
            return {"id": job["id"], "ok": True}
        if hasattr(verifier, "settle"):
            from primecli.verifiers import Pending

            grade = verifier.settle(Pending(job["answer"], job["ground_truth"]))
        else:
            from primecli.verifiers import Task

            grade = verifier.grade(Task(job["answer"], job["ground_truth"]))
    except MemoryError:
        return {"id": job["id"], "memory": True}
    except Exception as error:
        return {"id": job["id"], "failed": f"{type(error).__name__}: {error}"[:300]}
    return {"id": job["id"], "grade": asdict(grade)}


def _send(out: BinaryIO, message: dict[str, Any]) -> None:
    try:
        out.write(json.dumps(message).encode() + b"\n")
        out.flush()
    except BrokenPipeError:
        os._exit(0)


def _limit_memory(limit: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError):  # macOS has the constant but may refuse the limit
        if sys.platform == "linux":
            raise
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _die_with_parent(parent: int) -> None:
    """Sees to it that no worker outlives its parent, even one that a long multiplication keeps busy."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it was gone before the signal was asked for
        os._exit(0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
