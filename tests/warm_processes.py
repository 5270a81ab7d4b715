"""Real processes of `primecli warm`: the helper, its children, and what /proc says about them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from primecli.warm.protocol import VARIABLE

T = TypeVar("T")

PRIMECLI = [sys.executable, "-m", "primecli"]
REFUSAL = "starting without the warm helper: "  # begins the reason why a stage was not forked


class Warm:
    """A helper whose COMMAND waits until `end`, and the environment in which stages find the helper.

    command: the process of COMMAND. socket: the path of the helper's socket.
    """

    def __init__(self) -> None:
        script = f"echo ${VARIABLE}; exec cat"
        self.command = subprocess.Popen(
            [*PRIMECLI, "warm", "--", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.command.stdout is not None
        self.socket = self.command.stdout.readline().strip()
        self.environment = {**os.environ, VARIABLE: self.socket}
        self._process: int | None = None

    def process(self) -> int:
        """The helper's process number, once it has imported everything."""
        if self._process is None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(120)
                connection.connect(self.socket)
                assert connection.recv(100) == b"ready\n"
            (self._process,) = helper_processes(self.socket)
        return self._process

    def child(self) -> int:
        """The process number of the helper's only child."""
        return eventually(self._only_child)

    def _only_child(self) -> int | None:
        children = Path(f"/proc/{self.process()}/task/{self.process()}/children").read_text().split()
        return int(children[0]) if len(children) == 1 else None

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Starts a stage whose standard streams are pipes."""
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [*PRIMECLI, *map(str, arguments)]
        return subprocess.Popen(command, text=True, env=self.environment, **{**pipes, **options})

    def run(self, *arguments: object, warm: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a stage to its end. warm: whether it has to be forked."""
        options = {"env": self.environment, "stdin": subprocess.DEVNULL, **options}
        command = [*PRIMECLI, *map(str, arguments)]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=60, **options)
        assert (REFUSAL not in done.stderr) is warm, done.stderr
        return done

    def bash(self, script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs a script in which `p` is primecli."""
        script = f'set -euo pipefail\np() {{ {sys.executable} -m primecli "$@"; }}\n{script}'
        return subprocess.run(
            ["bash", "-c", script],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def end(self) -> None:
        """Lets COMMAND exit normally."""
        assert self.command.stdin is not None
        assert self.command.stdout is not None
        self.command.stdin.close()
        self.command.wait(timeout=10)
        self.command.stdout.close()


def helper_processes(path: str) -> list[int]:
    """Helpers that listen at this path. Their children have the same command line, but other process groups."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(os.path.dirname(path)) in words and os.getpgid(int(entry.name)) == int(entry.name):
                processes.append(int(entry.name))
    return processes


def wait_for_first_shard(front: subprocess.Popen[str]) -> None:
    """Makes score-prm score the first of two shards; from then on it waits for the second."""
    assert front.stdin is not None
    assert front.stdout is not None
    front.stdin.write("in/rollouts-00000-of-00002.parquet\n")
    front.stdin.flush()
    assert front.stdout.readline() == "score-prm/rollouts-00000-of-00002.parquet\n"


def state(process: int) -> str:
    """R, S, T and so on; empty if there is no such process, or only a zombie."""
    with contextlib.suppress(OSError):
        letter = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return "" if letter in "ZX" else letter
    return ""


def eventually(look: Callable[[], T | None], seconds: float = 20) -> T:
    """The first true result of `look`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := look()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return result
