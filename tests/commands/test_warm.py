from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from primecli.warm.protocol import VARIABLE
from tests.builders import rollouts, write_shards
from tests.conftest import summary
from tests.warm_processes import PRIMECLI, Warm, eventually, helper_processes, state, wait_for_first_shard

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm needs Linux")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PRIMECLI, "warm", "--", *command], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_it_becomes_the_command() -> None:
    script = "echo $$; echo $PPID; grep SigIgn /proc/self/status; echo word; exit 7"
    with subprocess.Popen([*PRIMECLI, "warm", "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=60)
    number, parent, ignored, word = out.splitlines()
    assert (process.returncode, word) == (7, "word")
    assert (int(number), int(parent)) == (process.pid, os.getpid())
    assert int(ignored.split()[1], 16) == ignored_signals()  # not SIGPIPE, which Python ignores


def ignored_signals() -> int:
    """The signals that a child of this process ignores, as a bit mask."""
    done = subprocess.run(["sh", "-c", "grep SigIgn /proc/self/status"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[1], 16)


def test_the_helper_exits_with_a_command_that_exits_during_its_imports() -> None:
    done = run("sh", "-c", f"echo ${VARIABLE}")
    path = done.stdout.strip()
    assert done.returncode == 0
    eventually(lambda: not helper_processes(path))
    assert not Path(path).parent.exists()


def test_under_a_helper_that_listens_no_second_one_is_started() -> None:
    inner = f"{' '.join(PRIMECLI)} warm -- sh -c 'echo ${VARIABLE}'"
    outer, same = run("sh", "-c", f"echo ${VARIABLE}; {inner}").stdout.split()
    assert outer == same
    outer, other = run("sh", "-c", f"echo ${VARIABLE}; {VARIABLE}=/nonexistent {inner}").stdout.split()
    assert outer != other
    assert other.endswith("/socket")


def test_a_command_that_cannot_be_run_gives_one_line(tmp_path: Path) -> None:
    done = run("no-such-command")
    assert (done.returncode, done.stderr) == (2, "primecli warm: no-such-command: no such command\n")
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = run(str(script))
    assert (done.returncode, done.stderr) == (
        1,
        f"primecli warm: {script}: cannot be run: No such file or directory\n",
    )


@pytest.fixture(scope="module")
def doomed(one_thread: None) -> Iterator[list[Warm]]:
    """Two helpers to be killed, started at the same time."""
    helpers = [Warm(), Warm()]
    yield [*helpers]
    for helper in helpers:
        helper.end()


@pytest.mark.parametrize("killed", ["helper", "command"])
def test_sigkill_of_the_helper_or_of_the_command_leaves_nothing(
    killed: str, doomed: list[Warm], tiny: Path, tmp_path: Path
) -> None:
    warm = doomed.pop()
    write_shards(tmp_path / "in", rollouts(2, 2), per_shard=2)
    with warm.start("score-prm", "--prm", tiny, "--ref", tiny, "--quiet", "-", cwd=tmp_path) as front:
        wait_for_first_shard(front)
        helper, child = warm.process(), warm.child()
        if killed == "helper":
            os.kill(helper, signal.SIGKILL)
        else:
            warm.command.kill()
        eventually(lambda: not state(child))
        eventually(lambda: not state(helper))
        assert front.stderr is not None
        again = "(run the same command again to continue)"
        if killed == "helper":
            line, code = f"stopped, because the helper of `primecli warm` has exited {again}", 1
        else:
            line, code = f"interrupted by SIGTERM {again}", 130
        assert (front.stderr.read(), front.wait(timeout=10)) == (f"primecli score-prm: {line}\n", code)
    if killed == "command":
        assert summary(tmp_path / "score-prm")["status"] == "failed"
        assert not Path(warm.socket).parent.exists()
    else:
        done = warm.run("score-prm", warm=False)
        assert "the helper of `primecli warm` does not answer (Connection refused)" in done.stderr
        assert done.returncode == 2


def test_on_other_systems_stages_start_without_the_helper() -> None:
    script = "import sys; sys.platform = 'darwin'; from primecli import cli; cli.main()"
    command = [sys.executable, "-c", script, "warm", "--", "sh", "-c", f"echo ${{{VARIABLE}-unset}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "unset\n"
    assert done.stderr == "primecli warm: this needs Linux 5.3 or newer; stages start without the warm helper\n"
