from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.made_runs import make_run, write_summary


def test_without_a_terminal_it_prints_once(tmp_path: Path, primecli: Any) -> None:
    result = primecli("watch", make_run(tmp_path / "run"))
    text = "\n".join(map(str, result.paths))
    assert "nothing is running" in text
    assert "PRM pairs" in text
    assert "\x1b" not in text


def test_a_missing_directory_is_an_input_error(tmp_path: Path, primecli: Any) -> None:
    result = primecli("watch", tmp_path / "nowhere", check=False)
    assert (result.code, "no such directory" in result.line()) == (3, True)


class Terminal:
    """`primecli watch` on a pseudo-terminal.

    seen: everything that it has written so far.
    """

    def __init__(self, *arguments: object) -> None:
        self.outside, inside = pty.openpty()
        command = [sys.executable, "-m", "primecli", "watch", *map(str, arguments), "--interval", "0.2"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, env=environment)
        os.close(inside)
        self.seen = ""

    def read_until(self, text: str, seconds: float = 60.0) -> None:
        """Reads until this text has appeared."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            if select.select([self.outside], [], [], 0.2)[0]:
                self.seen += os.read(self.outside, 65536).decode(errors="replace")

    def wait(self) -> int:
        """Reads to the end; returns the exit code."""
        while True:
            try:
                data = os.read(self.outside, 65536)
            except OSError:  # the process has closed its end
                break
            self.seen += data.decode(errors="replace")
        os.close(self.outside)
        return self.process.wait(timeout=30)


def test_on_a_terminal_it_follows_the_run_until_its_last_iteration(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    terminal = Terminal(run, "--iterations", 2)
    terminal.read_until("nothing is running")
    write_summary(run / "2" / "verify", "verify", rows=16, metrics={"accuracy": 0.8125})
    terminal.read_until("0.812")
    write_summary(run / "policy" / "2", "update-policy", metrics={"entropy": 0.4375})
    assert terminal.wait() == 0
    assert "0.438" in terminal.seen


def test_it_exits_with_0_on_ctrl_c_and_with_130_on_sigterm(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    terminals = [(Terminal(run), signal.SIGINT, 0), (Terminal(run), signal.SIGTERM, 130)]
    for terminal, number, code in terminals:
        terminal.read_until("nothing is running")
        terminal.process.send_signal(number)
        assert terminal.wait() == code
        assert "Traceback" not in terminal.seen
