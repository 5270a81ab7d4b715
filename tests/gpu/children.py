"""Imports torch and transformers once, then forks a process for each part, which leads a session of its own.

Importing takes seconds, and time on a GPU is short. A fork is as good as a new process as long as nothing has used
CUDA; if an import has, each child replaces itself by a new process.

Reads JSON lines such as {"part": "right", "device": "cuda", "tiny": false, "report": ..., "work": ..., ...}. Answers
each one with {"pid": ...}, and with {"code": ...} once that process has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
IMPORTS = (
    "numpy",
    "torch",
    "torch.profiler",
    "safetensors.torch",
    "pyarrow.parquet",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "primecli.training.trainer",
    "primecli.training.policy",
    "primecli.training.prm",
    "primecli.models.packed_attention",
    "primecli.generation.engines.hf",
)


def serve() -> None:
    """Runs parts until stdin ends."""
    _end_with_parent()
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # a fork would not have the thread
    for name in IMPORTS:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    _answer(answers, ready=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _be(json.loads(line), line)
        _answer(answers, pid=process)
        _, status = os.waitpid(process, 0)
        _answer(answers, code=os.waitstatus_to_exitcode(status))


def _answer(stream: Any, **content: Any) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()


def _end_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _be(order: dict[str, Any], line: str) -> None:
    """In the child: runs the part and ends."""
    code = 1
    try:
        os.setsid()
        _end_with_parent()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(order["environment"])
        if has_touched_gpu():
            os.execv(sys.executable, [sys.executable, "-m", "tests.gpu.children", line])
        code = run(order)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def has_touched_gpu() -> bool:
    """Whether this process has opened a GPU; CUDA does not survive a fork."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(("/dev/nvidia", "/dev/kfd")):
                return True
    return bool(sys.modules["torch"].cuda.is_initialized())


def run(order: dict[str, Any]) -> int:
    """Runs a part; returns 0, or 1 where it raised, with the traceback on stderr."""
    from tests.gpu.context import Context
    from tests.gpu.result import Report

    report = Report(Path(order["report"]))
    report.write()
    paths = {name: Path(order[name]) for name in ("work", "in_memory", "shared")}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    context = Context(name=order["part"], kind=order["device"], tiny=order["tiny"], report=report, **paths)
    try:
        if context.gpu:
            take_gpu(context)
        importlib.import_module(f"tests.gpu.part_{order['module']}").run(context)
    except BaseException as error:
        traceback.print_exc()
        Path(order["error"]).write_text(f"{type(error).__name__}: {error}".strip(), encoding="utf-8")
        return 1
    return 0


def take_gpu(context: Any) -> None:
    """Waits until the part before has released the GPU."""
    import torch

    from primecli.models.device import resolve_placement, wait_for_memory

    resolve_placement("cuda", "bfloat16")
    _, total = torch.cuda.mem_get_info(context.device)
    wait_for_memory(context.device, int(0.9 * total), seconds=20)
    free, _ = torch.cuda.mem_get_info(context.device)
    if free < 0.9 * total:
        context.report.note(f"only {free / 2**30:.1f} of {total / 2**30:.1f} GiB were free when this part began")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(run(json.loads(sys.argv[1])))
    serve()
