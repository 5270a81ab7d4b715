"""What the shell sees of a warm stage: exit codes, output, signals, and stages that start without the helper."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from primecli.warm.protocol import VARIABLE
from tests.conftest import summary
from tests.warm_processes import PRIMECLI, REFUSAL, Warm, eventually, state

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm needs Linux")


def test_the_front_imports_only_the_standard_library() -> None:
    script = "import sys; before = set(sys.modules); import primecli.__main__, primecli.warm.front\n"
    script += "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["primecli"]


def test_stages_without_torch_do_not_wait_until_the_helper_has_imported_it(tmp_path: Path) -> None:
    helper = socket.socket(socket.AF_UNIX)  # a helper that is still importing says nothing
    with helper:
        helper.bind(str(tmp_path / "socket"))
        helper.listen()
        done = subprocess.run(
            [*PRIMECLI, "verify", "nowhere"],
            env={**os.environ, VARIABLE: str(tmp_path / "socket")},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (3, "primecli verify: nowhere: no such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "--help"], 0),
        (["score-prm", "--nonsense"], 2),
        (["compute-advantages", "nowhere"], 3),
        (["--debug", "--config", os.devnull, "compute-advantages", "nowhere"], 3),
    ],
)
def test_exit_code_and_output_are_those_of_a_plain_stage(arguments: list[str], code: int, warm: Warm) -> None:
    done = warm.run(*arguments)
    assert done.returncode == code
    plain = subprocess.run(
        [*PRIMECLI, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.stdout == plain.stdout
    assert done.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to_group", [False, True])
def test_an_interrupt_is_one_line_and_a_failed_summary(
    number: signal.Signals, to_group: bool, waiting: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(waiting.pid, number) if to_group else os.kill(waiting.pid, number)
    assert waiting.wait(timeout=20) == 130
    assert waiting.stderr is not None
    line = f"primecli score-prm: interrupted by {number.name} (run the same command again to continue)"
    assert waiting.stderr.read().splitlines() == [line]
    assert summary(tmp_path / "score-prm")["status"] == "failed"


def test_the_front_stops_and_continues_with_the_child(waiting: subprocess.Popen[str], warm: Warm) -> None:
    child = warm.child()
    os.kill(waiting.pid, signal.SIGTSTP)
    _, status = os.waitpid(waiting.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    eventually(lambda: state(child) == "T")
    os.kill(waiting.pid, signal.SIGCONT)
    eventually(lambda: state(child) == "S")
    waiting.communicate("in/rollouts-00001-of-00002.parquet\n", timeout=20)
    assert waiting.returncode == 0


def test_a_killed_front_takes_the_child_with_it(waiting: subprocess.Popen[str], warm: Warm) -> None:
    child = warm.child()
    waiting.kill()
    eventually(lambda: not state(child))
    assert waiting.wait() == -signal.SIGKILL


def test_a_killed_group_takes_the_child_with_it(waiting: subprocess.Popen[str], warm: Warm) -> None:
    child = warm.child()
    os.kill(warm.process(), signal.SIGSTOP)  # so that only the kernel can do it
    try:
        os.killpg(waiting.pid, signal.SIGKILL)
        eventually(lambda: not state(child))
    finally:
        os.kill(warm.process(), signal.SIGCONT)


def test_a_front_waiting_for_the_helper_can_be_interrupted(warm: Warm) -> None:
    os.kill(warm.process(), signal.SIGSTOP)
    try:
        front = warm.start("compute-advantages", "nowhere", stdin=subprocess.DEVNULL)
        eventually(lambda: "poll" in Path(f"/proc/{front.pid}/wchan").read_text() or state(front.pid) == "S")
        eventually(lambda: signal_is_caught(front.pid, signal.SIGINT))
        front.send_signal(signal.SIGINT)
        _, errors = front.communicate(timeout=10)
        assert front.returncode == 130
        assert "interrupted by SIGINT" in errors
    finally:
        os.kill(warm.process(), signal.SIGCONT)


def signal_is_caught(process: int, number: int) -> bool:
    """Whether the process handles this signal, and SIGUSR1 as only a front does."""
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1) and bool(
        int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1
    )


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("HF_HUB_OFFLINE=0 p score-prm", "HF_HUB_OFFLINE is 0 here and 1 in the helper"),
        ("LC_ALL=C p score-prm", "LC_ALL is C here and unset in the helper"),
        ("env -u OMP_NUM_THREADS $primecli score-prm", "OMP_NUM_THREADS is unset here"),
        ("ulimit -n 500; p score-prm", "a resource limit (ulimit) differs from the helper's"),
        ("setsid --wait $primecli score-prm", "the session differs from the helper's"),
        ("nice $primecli score-prm", "the niceness differs from the helper's"),
        (f"{VARIABLE}=/nonexistent p score-prm", "does not answer (No such file or directory)"),
    ],
)
def test_a_stage_that_a_child_could_not_run_starts_without_the_helper_and_says_why(
    script: str, reason: str, warm: Warm, tmp_path: Path
) -> None:
    done = warm.bash(f"primecli='{' '.join(PRIMECLI)}'\n{script}", tmp_path)
    assert done.returncode == 2  # the command line lacks --prm
    first, second = done.stderr.splitlines()
    assert first.startswith(f"primecli score-prm: {REFUSAL}")
    assert reason in first
    assert "Missing option" in second


def test_variables_that_no_import_reads_may_differ(warm: Warm, tmp_path: Path) -> None:
    done = warm.bash("SEED=7 CUDA_VISIBLE_DEVICES= MAKELEVEL=1 PYTHON=python OMP_NUM_THREADS=2 p score-prm", tmp_path)
    assert (done.returncode, REFUSAL in done.stderr) == (2, False), done.stderr
