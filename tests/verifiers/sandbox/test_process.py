"""Programs that attack: none passes, hangs or does harm."""

import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from primecli.errors import UsageError
from primecli.verifiers import Grade, Task
from primecli.verifiers.code.run import MODULES
from primecli.verifiers.code.verifier import CodeVerifier
from primecli.verifiers.pool import GradingPool
from primecli.verifiers.sandbox import process
from primecli.verifiers.sandbox.process import Limits, Process
from tests.verifiers.sandbox.attacks import BENT, HOSTILE, LOOK_AROUND

pytestmark = pytest.mark.skipif(process.bwrap_problem() is not None, reason=f"no sandbox: {process.bwrap_problem()}")

CASES = range(1, 4)
TRUTHS: dict[str, dict[str, Any]] = {
    "stdin": {"inputs": [f"{x}\n" for x in CASES], "outputs": [f"{7919 * x}\n" for x in CASES]},
    "calls": {"fn_name": "f", "inputs": [[x] for x in CASES], "outputs": [7919 * x for x in CASES]},
    "check": {"test": "def check(f):\n    assert f(1) == 7919\n    assert f(2) == 15838\n", "entry_point": "f"},
    "asserts": {"asserts": ["assert f(1) == 7919", "assert f(2) == 15838"]},
}
RIGHT = {"stdin": "print(7919 * int(input()))", "calls": "def f(x): return 7919 * x"}
RIGHT |= {"check": RIGHT["calls"], "asserts": RIGHT["calls"]}


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    verifier = CodeVerifier(sandbox="bwrap", test_timeout=2, program_timeout=6, memory_mb=512)
    yield verifier
    verifier.close()


OPTIONS = {"sandbox": "bwrap", "test_timeout": 0.4, "program_timeout": 4, "memory_mb": 512}


@pytest.fixture(scope="module")
def hostile_grades() -> dict[tuple[str, str], Grade | None]:
    """All hostile programs, graded side by side; none of their processes is left."""
    keys = [(name, form) for name in HOSTILE for form in ("stdin", "check")]
    keys += [(name, form) for name in BENT for form in ("calls", "check", "asserts")]
    code = HOSTILE | BENT
    before = _sandboxes()
    with GradingPool("code", workers=2, timeout=30, options=OPTIONS) as pool:
        grades = pool.grade_list(
            [Task(f"```python\n{code[name]}\n```", json.dumps(TRUTHS[form])) for name, form in keys]
        )
    _wait_for_no_sandbox_beside(before)
    return dict(zip(keys, grades, strict=True))


def _wait_for_no_sandbox_beside(before: set[int]) -> None:
    until = time.monotonic() + 10
    while left := _sandboxes() - before:
        assert time.monotonic() < until, left
        time.sleep(0.05)


def _sandboxes() -> set[int]:
    listing = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 1) for line in listing.splitlines()]
    return {int(line[0]) for line in lines if len(line) == 2 and "import marshal, os, sys, types" in line[1]}


@pytest.mark.parametrize("form", TRUTHS)
def test_the_right_program_passes(verifier: CodeVerifier, form: str) -> None:
    assert verifier.grade(Task(RIGHT[form], json.dumps(TRUTHS[form]))).verdict == "correct"


@pytest.mark.parametrize("form", ["stdin", "check"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs(hostile_grades: dict[tuple[str, str], Grade | None], name: str, form: str) -> None:
    grade = hostile_grades[name, form]
    assert grade is not None
    assert grade.reward == 0.0, grade  # an error, also that of the pool's deadline, would have none


@pytest.mark.parametrize("name", BENT)
@pytest.mark.parametrize("form", ["calls", "check", "asserts"])
def test_bent_results(hostile_grades: dict[tuple[str, str], Grade | None], name: str, form: str) -> None:
    grade = hostile_grades[name, form]
    assert grade is not None
    assert grade.reward == 0.0, grade


def test_a_loose_test_is_not_passed_by_operators(verifier: CodeVerifier) -> None:
    statements = ["assert abs(f(1) - 7919) < 1e-6", "assert f(1) > 7000", "assert f(1) in [7919]"]
    for name in ("equal to everything", "operators of everything", "class that claims to be int"):
        for statement in statements:
            grade = verifier.grade(Task(BENT[name], json.dumps({"asserts": [statement]})))
            assert grade.reward == 0.0, (name, statement)


def seen_by(verifier: CodeVerifier, expression: str) -> str:
    """The value of an expression in the sandbox, as the failure shows it on stdout."""
    truth = json.dumps({"inputs": [""], "outputs": ["?"]})
    return verifier.grade(Task(f"import os, socket\nprint({expression})", truth)).first_failure or ""


def test_what_a_program_sees(verifier: CodeVerifier, tmp_path: Path) -> None:
    secret = Path(__file__)
    assert "stdout 'False" in seen_by(verifier, f"os.path.exists({str(secret)!r})")
    assert "stdout 'False" in seen_by(verifier, f"os.path.exists({str(tmp_path)!r})")
    assert "stdout '[]" in seen_by(verifier, "sorted(os.listdir('/tmp'))")
    assert "stdout \"['lo']" in seen_by(
        verifier, "[line.split(':')[0].strip() for line in list(open('/proc/net/dev'))[2:]]"
    )
    names = seen_by(verifier, "sorted(os.environ)")
    assert "PYTHONHASHSEED" in names
    assert "USER" not in names
    assert "stdout '1000" in seen_by(verifier, "os.getuid()")
    for path in ("/x", "/usr/lib/x", "/dev/shm/x", "/proc/sys/kernel/core_pattern", sys.base_prefix + "/x"):
        assert "exit status 1" in seen_by(verifier, f"open({path!r}, 'w')"), path


def test_the_environment_is_a_fixed_one(verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    expected = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "PWD": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    assert "stdout 'True" in seen_by(verifier, f"dict(os.environ) == {expected}")


@dataclass(frozen=True)
class Secrets:
    """What no program may see.

    canary: a text in the caller's environment, working directory and open files.
    answer: the output that a test expects.
    """

    canary: str
    answer: str


@pytest.fixture
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secrets]:
    hidden = Secrets(f"canary-{secrets.token_hex(16)}", f"answer-{secrets.token_hex(16)}")
    folder = tmp_path / hidden.canary
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PRIMECLI_TEST_TOKEN", hidden.canary)
    with (folder / "open").open("w+") as file:
        file.write(hidden.canary)
        file.flush()
        os.set_inheritable(file.fileno(), True)
        yield hidden


def looking_around(form: str, answer: str) -> Task:
    """A program that searches /proc for secrets and returns its findings: the failure shows that wrong answer."""
    last = "print(look_around())" if form == "stdin" else "def f(x): return look_around()"
    test = f"said = f(1)\nassert said == {answer!r}, said"
    truth = {
        "stdin": {"inputs": [""], "outputs": [answer]},
        "calls": {"fn_name": "f", "inputs": [[1]], "outputs": [answer]},
        "check": {"test": "def check(f):\n" + textwrap.indent(test, "    "), "entry_point": "f"},
        "asserts": {"asserts": [test]},
    }
    return Task(f"```python\n{LOOK_AROUND}\n{last}\n```", json.dumps(truth[form]))


def sights(grade: Grade) -> tuple[int, str]:
    """How many processes such a program saw, and the first secret it found. It must have read its own environment."""
    report = re.search(r"(\d+) processes, own environment 1, found \[(.*?)\]\.", grade.first_failure or "")
    assert report is not None, grade
    return int(report[1]), report[2]


@pytest.mark.parametrize("form", TRUTHS)
def test_nothing_of_the_caller_is_in_sight(hidden: Secrets, form: str) -> None:
    verifier = CodeVerifier(sandbox="bwrap", test_timeout=20)
    processes, found = sights(verifier.grade(looking_around(form, hidden.answer)))
    verifier.close()
    assert found == ""
    assert processes == (3 if form == "stdin" else 2)  # bubblewrap, and the program with or without a fork


@pytest.mark.parametrize("form", TRUTHS)
def test_nor_is_it_without_landlock(hidden: Secrets, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_landlock(monkeypatch)
    test_nothing_of_the_caller_is_in_sight(hidden, form)


def without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes processes start as on a kernel without Landlock."""
    source = Path(process.__file__).with_name("seccomp.py").read_text()
    source += "\ndef hide_other_processes(): pass\n"
    lacking = compile(source, "seccomp.py", "exec", dont_inherit=True)
    compiled = process.compiled_module
    monkeypatch.setattr(process, "compiled_module", lambda name: lacking if name == "seccomp" else compiled(name))


def test_bubblewrap_itself_starts_with_no_environment(hidden: Secrets) -> None:
    with Process("bwrap", Limits(), MODULES, {"sources": ["x = 1"], "defines": None, "serve": True}) as process:
        environments = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in _tree(process.pid)}
    assert [environments.pop(pid) for pid in list(environments)[:2]] == [
        b"",
        b"",
    ]  # outside the sandbox, and the first one inside
    assert [b"PYTHONHASHSEED=0" in environment for environment in environments.values()] == [True]
    assert not any(hidden.canary.encode() in environment for environment in environments.values())


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(descendant for child in children for descendant in _tree(int(child)))]


def landlock_version() -> int:
    create_ruleset, ask_for_version = 444, 1
    return int(ctypes.CDLL(None).syscall(create_ruleset, None, 0, ask_for_version))


@pytest.mark.parametrize("form", TRUTHS)
def test_limits_hide_the_callers_processes_where_there_is_landlock(hidden: Secrets, form: str) -> None:
    if landlock_version() < 4:
        pytest.skip("this kernel has no Landlock, or one from before Linux 6.7")
    with GradingPool("code", workers=1, timeout=100, options={"sandbox": "limits", "test_timeout": 20}) as pool:
        grade = pool.grade_list([looking_around(form, hidden.answer)])[0]
    assert grade is not None
    processes, found = sights(grade)
    assert found == ""
    assert processes > 0


def test_the_notice_says_what_limits_do_not_hide() -> None:
    notice = CodeVerifier(sandbox="limits").notice or ""
    for word in ("files", "keys", "the tests' answers", "memory", "environment", "Landlock"):
        assert word in notice


def test_network_is_out_of_reach(verifier: CodeVerifier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        assert "exit status 1" in seen_by(verifier, f"socket.create_connection({address!r}, 1)")
    assert "exit status 1" in seen_by(verifier, "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")


def test_deleting_files_harms_nobody(verifier: CodeVerifier, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    delete = f"import shutil, os\nfor p in ({str(tmp_path)!r}, '/', {sys.base_prefix!r}, os.path.expanduser('~')):\n"
    delete += "    shutil.rmtree(p, ignore_errors=True)\nprint(7919)"
    assert verifier.grade(Task(delete, json.dumps(TRUTHS["stdin"]))).reward == 0.0
    assert kept.read_text() == "kept"
    assert verifier.grade(Task(RIGHT["stdin"], json.dumps(TRUTHS["stdin"]))).reward == 1.0


def test_a_test_finds_nothing_of_the_one_before(verifier: CodeVerifier) -> None:
    program = (
        "import os\nx = input()\nprint(os.listdir('/tmp'))\nos.makedirs('/tmp/a/b')\nopen('/tmp/a/c', 'w').close()"
    )
    truth = {"inputs": ["1", "2", "3"], "outputs": ["[]"] * 3}
    assert verifier.grade(Task(program, json.dumps(truth))).verdict == "correct"


def test_the_sandbox_ends_with_its_worker() -> None:
    sleep = "import time\ntime.sleep(50)"
    before = _sandboxes()
    with GradingPool("code", workers=1, timeout=100, options={"sandbox": "bwrap", "test_timeout": 30}) as pool:
        grading = iter(pool.grade_all([Task(sleep, json.dumps(TRUTHS["stdin"]))], cancelled=lambda: bool(done)))
        done: list[bool] = []

        def kill() -> None:
            until = time.monotonic() + 30
            while len(_sandboxes() - before) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            done.append(True)
            os.kill(pool.worker_pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert list(grading) == []
        killer.join()
        _wait_for_no_sandbox_beside(before)


def test_grades_come_through_the_pool() -> None:
    with GradingPool("code", workers=2, timeout=100, options={"sandbox": "bwrap"}) as pool:
        tasks = [Task(RIGHT[form], json.dumps(truth)) for form, truth in TRUTHS.items()] * 2
        grades = pool.grade_list([*tasks, Task("x = 1", json.dumps(TRUTHS["asserts"]))])
    assert [grade and grade.reward for grade in grades] == [1.0] * 8 + [0.0]
    last = grades[-1]
    assert last is not None
    assert (last.tests_passed, last.tests_total) == (0, 2)
    assert last.first_failure == "test 1 of 2: NameError: name 'f' is not defined (line 1 of the tests)"


@pytest.mark.parametrize("mode", ["limits", "none"])
@pytest.mark.parametrize("form", TRUTHS)
def test_the_other_modes_grade_alike_and_say_what_they_give_up(mode: str, form: str) -> None:
    verifier = CodeVerifier(sandbox=mode, test_timeout=0.5)
    assert verifier.notice
    assert verifier.grade(Task(RIGHT[form], json.dumps(TRUTHS[form]))).verdict == "correct"
    wrong = RIGHT[form].replace("7919", "7918")
    assert verifier.grade(Task(wrong, json.dumps(TRUTHS[form]))).verdict == "wrong"
    assert verifier.grade(Task("while True: pass", json.dumps(TRUTHS[form]))).verdict == "timeout"
    verifier.close()


def test_nothing_is_left_among_the_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with GradingPool("code", workers=1, options={"sandbox": "limits"}) as pool:
        grades = pool.grade_list([Task(RIGHT[form], json.dumps(truth)) for form, truth in TRUTHS.items()])
    assert {grade and grade.verdict for grade in grades} == {"correct"}
    assert list(tmp_path.iterdir()) == []


def test_limits_bind_without_bubblewrap() -> None:
    verifier = CodeVerifier(sandbox="limits", test_timeout=0.6, program_timeout=4)
    for name in ("memory hog", "slow memory hog", "endless output", "fork bomb that gives up", "killing the parent"):
        grade = verifier.grade(Task(HOSTILE[name], json.dumps(TRUTHS["stdin"])))
        assert grade.reward == 0.0, name
    verifier.close()


REACH = """
import fcntl, os, resource, socket
parent = os.getppid()
pair = socket.socketpair()
refused = []
for attempt in (
    lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (0, 0)),
    lambda: fcntl.fcntl(pair[0], fcntl.F_SETOWN, parent),
    lambda: fcntl.ioctl(pair[0], 0x8901, parent.to_bytes(4, "little")),
    lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
    lambda: os.sched_setaffinity(parent, {0}),
    os.setsid,
    lambda: os.setpgid(0, 0),
):
    try:
        attempt()
        refused.append("done")
    except PermissionError:
        refused.append("refused")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # its own limits are its own
fcntl.fcntl(pair[0], fcntl.F_GETFL)
"""


@pytest.mark.parametrize("form", ["stdin", "calls"])
def test_other_processes_are_out_of_reach_without_bubblewrap(form: str) -> None:
    verifier = CodeVerifier(sandbox="limits")
    last = "print(*refused)" if form == "stdin" else "def f(*a): return ' '.join(refused)"
    expected = " ".join(["refused"] * 7)
    truth = {"inputs": [""], "outputs": [expected]} | ({} if form == "stdin" else {"fn_name": "f"})
    grade = verifier.grade(Task(f"```python\n{REACH}{last}\n```", json.dumps(truth)))
    assert grade.verdict == "correct", grade.first_failure


def test_auto_is_bubblewrap_or_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CodeVerifier().sandbox == "bwrap"
    assert CodeVerifier().notice is None
    monkeypatch.setattr(process, "bwrap_problem", lambda: "bwrap is not installed")
    with pytest.raises(UsageError, match="apt-get install bubblewrap"):
        CodeVerifier()
    with pytest.raises(UsageError, match="no sandbox 'docker'"):
        CodeVerifier(sandbox="docker")
