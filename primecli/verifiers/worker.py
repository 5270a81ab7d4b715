"""The process that `GradingPool` starts for tasks that may hang or crash.

It reads its configuration and then tasks from stdin, one JSON object a line, and writes one report for each task to
what was stdout. It ends when stdin closes, and the kernel kills it when its parent ends.
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

from primecli.verifiers import MAX_DETAIL_CHARS, Pending, Task, build_verifier
from primecli.verifiers.sandbox import seccomp


def main() -> None:
    """Reads its configuration from the first line of stdin, then grades until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing that a library prints gets between the reports
    config = json.loads(sys.stdin.buffer.readline() or "null")
    if config is None:
        return
    _die_with_parent(config["parent"])
    # whatever the environment says: reading an integer of millions of digits takes hours
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)
    try:
        _limit_memory(config["memory_bytes"])
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
            return  # the heap may be in any state; the pool starts a fresh worker


def _report(verifier: Any, job: dict[str, Any]) -> dict[str, Any]:
    try:
        if job["kind"] == "probe":
            verifier.probe(job["ground_truth"])
            return {"id": job["id"], "ok": True}
        if hasattr(verifier, "settle"):
            grade = verifier.settle(Pending(job["answer"], job["ground_truth"]))
        else:
            grade = verifier.grade(Task(job["answer"], job["ground_truth"]))
    except MemoryError:
        return {"id": job["id"], "memory": True}
    except Exception as error:
        return {"id": job["id"], "failed": f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]}
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
    """Makes sure that no worker outlives its parent, even one that is busy with a long multiplication."""
    if sys.platform == "linux":
        seccomp.die_with_parent(parent)
    else:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
