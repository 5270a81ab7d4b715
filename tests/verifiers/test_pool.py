import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from primecli.errors import PrimecliError
from primecli.verifiers import VERIFIERS, Grade, Task
from primecli.verifiers.pool import GradingPool

ROOT = Path(__file__).resolve().parents[2]


class Scripted:
    """Does what the response says, in the worker."""

    def __init__(self, log: str | None = None) -> None:
        self.log = log

    def grade(self, task: Task) -> Grade:
        if self.log:
            with open(self.log, "a") as log:
                log.write(task.response + "\n")
        if task.response == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            while True:
                pass
        if task.response == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if task.response == "hoard":
            return Grade(1.0, "correct", str(len(bytearray(8 << 30))))  # never touched where it is granted
        if task.response == "babble":
            for number in range(3, 32):
                with contextlib.suppress(OSError):
                    os.write(number, b'[1]\n{"id":1}\n\xff\n')
        if task.response == "raise":
            raise RuntimeError("broken")
        if task.response.startswith("once "):
            marker = Path(task.response[5:])
            if not marker.exists():
                marker.touch()
                os._exit(1)
        print("noise on stdout")
        return Grade(1.0, "correct")


class Probed(Scripted):
    """The same, and can try its ground truth alone."""

    def probe(self, ground_truth: str) -> None:
        self.grade(Task(ground_truth, ""))


class Deadlined(Scripted):
    """The same, with a deadline of its own, which it does not keep."""

    pool_timeout = 0.7


class Broken:
    """Cannot be built in a worker."""

    def __init__(self) -> None:
        if os.environ["BUILT_IN"] != str(os.getpid()):
            raise RuntimeError("no licence")

    def grade(self, task: Task) -> Grade:
        return Grade(0.0, "wrong")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Scripted, Probed, Deadlined, Broken):
        monkeypatch.setitem(VERIFIERS, cls.__name__.lower(), f"{__name__}:{cls.__name__}")


@pytest.fixture
def scripted() -> Iterator[GradingPool]:
    with GradingPool("scripted", workers=2, timeout=1.0, memory_bytes=1 << 30) as pool:
        yield pool


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def graded(pool: GradingPool, *responses: str, gold: str = "fine") -> list[Grade | None]:
    return pool.grade_list([Task(response, gold) for response in responses])


def test_a_deadline_ends_one_task_and_no_other(scripted: GradingPool) -> None:
    fine = [f"fine {i}" for i in range(20)]
    grades = graded(scripted, *fine[:10], "hang", *fine[10:])
    assert grades[10] == Grade(0.0, "timeout")
    assert [grade for grade in grades if grade != grades[10]] == [Grade(1.0, "correct")] * 20
    assert len(scripted.worker_pids) <= 2


def test_a_worker_that_dies_is_replaced_and_its_task_is_an_error(scripted: GradingPool) -> None:
    grades = graded(scripted, "die", "fine 1", "raise", "fine 2")
    assert [grade and grade.verdict for grade in grades] == ["error", "correct", "error", "correct"]
    assert [grade and grade.reward for grade in grades] == [None, 1.0, None, 1.0]
    assert grades[2] is not None
    assert grades[2].detail == "RuntimeError: broken"


def test_words_among_the_reports_of_a_worker_harm_no_other_task(scripted: GradingPool) -> None:
    grades = graded(scripted, "fine 1", "babble", "fine 2", "fine 3")
    assert [grade and grade.verdict for grade in grades] == ["correct", "error", "correct", "correct"]


def test_a_death_that_does_not_repeat_is_forgiven(scripted: GradingPool, tmp_path: Path) -> None:
    assert graded(scripted, f"once {tmp_path / 'marker'}") == [Grade(1.0, "correct")]


def test_memory_of_a_worker_is_bounded(scripted: GradingPool) -> None:
    (hoard, fine) = graded(scripted, "hoard", "fine")
    assert hoard is not None
    assert (hoard.verdict, hoard.reward) == ("error", None)
    assert fine == Grade(1.0, "correct")


@pytest.mark.parametrize(
    ("gold", "verdict"), [("fine", "timeout"), ("raise", "error"), ("die", "error"), ("hang", "error")]
)
def test_the_ground_truth_is_tried_alone_to_find_the_fault(gold: str, verdict: str) -> None:
    with GradingPool("probed", workers=2, timeout=0.7, memory_bytes=1 << 30) as pool:
        for response in ("hang", "die", "hoard"):
            (grade,) = graded(pool, response, gold=gold)
            assert grade is not None
            assert (grade.verdict, grade.reward) == (verdict, 0.0 if verdict == "timeout" else None), response


def test_a_verifier_that_has_deadlines_sets_the_pools_and_is_at_fault_for_passing_it() -> None:
    with GradingPool("deadlined", workers=1, timeout=1000.0) as pool:
        assert pool.timeout == 0.7
        assert graded(pool, "hang", "fine") == [
            Grade(None, "error", detail="no answer within 0.7 seconds"),
            Grade(1.0, "correct"),
        ]


def test_equal_tasks_are_graded_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with GradingPool("scripted", workers=2, options={"log": str(log)}) as pool:
        assert graded(pool, *["a", "b", "a", "a", "b"]) == [Grade(1.0, "correct")] * 5
    assert sorted(log.read_text().split()) == ["a", "b"]


def test_tasks_larger_than_a_pipe_get_through(scripted: GradingPool) -> None:
    assert graded(scripted, *(str(i) * 1_000_000 for i in range(10))) == [Grade(1.0, "correct")] * 10


def test_no_process_is_left_after_close(scripted: GradingPool) -> None:
    graded(scripted, *map(str, range(20)))
    pids = scripted.worker_pids
    assert pids
    scripted.close()
    assert scripted.worker_pids == []
    for pid in pids:
        with pytest.raises(ChildProcessError):  # reaped: no zombie either
            os.waitpid(pid, os.WNOHANG)
    assert graded(scripted, "again") == [Grade(1.0, "correct")]


def test_cancelling_stops_early_and_kills_the_busy(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    tasks = [Task("hang", str(i)) for i in range(50)]
    with GradingPool("scripted", workers=2, timeout=1000, options={"log": str(log)}) as pool:
        grades = pool.grade_list(tasks, cancelled=lambda: log.read_text() == "hang\nhang\n")  # one in each worker
        assert grades == [None] * 50
        assert pool.worker_pids == []
        assert graded(pool, "fine") == [Grade(1.0, "correct")]


def test_closing_the_iterator_kills_the_busy(scripted: GradingPool) -> None:
    running = scripted.grade_all([Task("fine", "a"), Task("hang", "a"), Task("fine", "b")])
    next(running)
    pids = scripted.worker_pids
    running.close()  # type: ignore[attr-defined]
    assert not set(pids) & set(scripted.worker_pids)
    assert graded(scripted, "fine") == [Grade(1.0, "correct")]


def test_a_verifier_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILT_IN", str(os.getpid()))
    with GradingPool("broken", workers=1) as pool, pytest.raises(PrimecliError, match="no licence"):
        graded(pool, "a")


def test_a_batch_settled_by_cheap_means_starts_no_worker() -> None:
    with GradingPool("math") as pool:
        grades = pool.grade_list([Task(r"\boxed{\frac12}", "0.5"), Task("", "5"), Task("5", None), Task("#### 6", "5")])
        assert pool.worker_pids == []
    assert [grade and grade.verdict for grade in grades] == ["correct", "wrong", "error", "wrong"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("response", ["hang", "fine"])
def test_no_worker_outlives_a_parent_killed_by_sigkill(response: str) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from primecli.verifiers import VERIFIERS, Task
from primecli.verifiers.pool import GradingPool
VERIFIERS["scripted"] = "{__name__}:Scripted"
pool = GradingPool("scripted", workers=2, timeout=60)
tasks = [Task("fine", str(i)) for i in range(20)] + [Task({response!r}, str(i)) for i in range(20)]
show = lambda: bool(pool.worker_pids) and print(*pool.worker_pids, flush=True)
for index, grade in pool.grade_all(tasks, cancelled=show):
    pass
print("done", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids: list[int] = []
        end = time.monotonic() + 20
        while time.monotonic() < end:
            line = parent.stdout.readline().split()
            if line == ["done"]:
                break
            pids = [int(word) for word in line]
            if response == "hang" and len(pids) == 2 and time.monotonic() > end - 17:
                break
        assert pids
        assert all(alive(pid) for pid in pids)
        parent.kill()
        parent.wait()
    for _ in range(50):
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def test_hostile_answers_are_graded_within_their_deadlines() -> None:
    answers = [
        "10^{10^{10}}", "((((9!)!)!)!)", "9^{9^{9^{9}}}", r"\sum_{k=1}^{10^{9}} k^{k}", "{" * 100_000,
        r"\prod_{k=1}^{10^9} k", "(" * 900 + "1" + ")" * 900, "1" * 1_000_000, "\u200b5\u200b", "５", "−5",
        r"\int_0^1 x^2 dx", "1" + "!" * 50,
    ]  # fmt: skip
    start = time.monotonic()
    with GradingPool("math", workers=2, timeout=1.5) as pool:
        grades = pool.grade_list([Task(f"\\boxed{{{answer}}}", "5") for answer in answers])
    assert time.monotonic() - start < 30
    assert all(grade is not None for grade in grades)
    verdicts = [grade.verdict for grade in grades if grade is not None]
    assert "error" not in verdicts
    assert [i for i, verdict in enumerate(verdicts) if verdict == "correct"] == [8, 9]
    assert "timeout" in verdicts
