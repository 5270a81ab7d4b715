"""What all workers guarantee, with child processes that import nothing large."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from primecli.errors import GateError, InputError, PrimecliError, ReaderClosed
from primecli.pipeline.local_workers import LocalWorkers
from primecli.pipeline.workers import RETRIES, Worker
from tests.pipeline.small_workers import open_broken, open_dying, open_small


class Rows:
    """Counts what `advance` and `warn` are called with, and keeps what was delivered."""

    def __init__(self) -> None:
        self.rows = 0
        self.warnings: list[str] = []
        self.delivered: list[Any] = []

    def advance(self, rows: int) -> None:
        self.rows += rows

    def workers(self, count: int = 2, opener: Callable[[], Worker] = open_small, **options: Any) -> LocalWorkers:
        places = options.pop("places", [{}] * count)
        return LocalWorkers(opener, places, advance=self.advance, warn=self.warnings.append, **options)

    def submit(self, workers: LocalWorkers, *items: tuple[str, Any]) -> None:
        for number, item in enumerate(items):
            workers.submit(f"job {number}", item, self.delivered.append)

    def run(self, *items: tuple[str, Any], **options: Any) -> list[int]:
        """Does jobs to their end; returns the process ids of the workers at that moment."""
        with self.workers(**options) as workers:
            self.submit(workers, *items)
            workers.finish()
            return workers.pids


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_results_come_in_the_order_of_the_jobs_and_several_processes_make_them() -> None:
    made = Rows()
    with made.workers(opener=partial(open_small, "mine")) as workers:
        made.submit(workers, ("sleep", 0.5), *[("say", number) for number in range(6)])
        workers.finish()
        pids = workers.pids
    assert [argument for argument, _, _ in made.delivered] == [0.5, 0, 1, 2, 3, 4, 5]
    assert {label for _, label, _ in made.delivered} == {"mine"}
    assert {pid for _, _, pid in made.delivered} == set(pids)
    assert len(pids) == 2
    assert made.rows == 21
    assert all(gone(pid) for pid in pids)


def test_what_needs_no_work_waits_for_its_turn_too() -> None:
    made = Rows()
    with made.workers() as workers:
        workers.pass_on(lambda: made.delivered.append("first"))
        assert made.delivered == ["first"]
        made.submit(workers, ("large", 1))
        workers.pass_on(lambda: made.delivered.append("last"))
        assert made.delivered == ["first"]
        workers.finish()
    assert made.delivered == ["first", b"x", "last"]


def test_only_so_many_jobs_are_in_flight() -> None:
    made = Rows()
    with made.workers() as workers:
        for number in range(12):
            made.submit(workers, ("say", number))
            assert number + 1 - len(made.delivered) <= workers.most
        workers.finish()


def test_large_items_and_results_pass() -> None:
    made = Rows()
    with made.workers(1) as workers:
        made.submit(workers, ("large", 5_000_000), ("say", b"y" * 5_000_000))
        workers.finish()
    assert [len(made.delivered[0]), len(made.delivered[1][0])] == [5_000_000, 5_000_000]


def test_the_job_of_a_dead_worker_is_done_again_and_its_rows_count_once(tmp_path: Path) -> None:
    made = Rows()
    with made.workers() as workers:
        made.submit(workers, ("say", 0), ("die", tmp_path / "died"), ("say", 2))
        workers.finish()
    assert [argument for argument, *_ in made.delivered] == [0, tmp_path / "died", 2]
    assert made.warnings == ["a worker was killed by SIGKILL while it made job 1: making it again (1 of 3 times)"]
    assert made.rows == 9


def test_a_job_that_kills_every_worker_is_given_up() -> None:
    made = Rows()
    with pytest.raises(PrimecliError, match=r"^4 workers died while they made job 0; the last was killed by SIGKILL"):
        made.run(("die always", None))
    assert len(made.warnings) == RETRIES


@pytest.mark.parametrize(
    ("item", "kind", "text"),
    [
        (("input error", "a.parquet"), InputError, "a.parquet: is broken (make it again)"),
        (("gate", None), GateError, "too far off"),
        (("bug", "no such thing"), RuntimeError, "_Foreign: no such thing"),
        (("memory", None), PrimecliError, "a worker ran out of memory (use fewer workers, or smaller micro-batches)"),
    ],
)
def test_an_error_ends_the_work_at_once_after_what_came_before(item: Any, kind: Any, text: str) -> None:
    made = Rows()
    with pytest.raises(kind) as raised:
        made.run(("sleep", 0.3), item, ("say", 2), ("say", 3))
    assert str(raised.value) == text
    assert type(raised.value) is kind
    assert [argument for argument, *_ in made.delivered] == [0.3]
    assert made.warnings == []


def test_a_worker_that_cannot_be_opened_says_why() -> None:
    made = Rows()
    with pytest.raises(InputError, match="ckpt: no such model"):
        made.run(("say", 0), opener=open_broken)


def test_workers_that_die_before_they_have_a_job_are_not_started_for_ever() -> None:
    made = Rows()
    with pytest.raises(PrimecliError, match=r"workers (died|die) while they .* ended with code 3"):
        made.run(("say", 0), opener=open_dying)


def test_children_have_their_place_but_neither_our_stdin_nor_our_stdout(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # nothing that was printed may wait in a buffer
    made = Rows()
    with made.workers(places=[{"CUDA_VISIBLE_DEVICES": "3"}]) as workers:
        made.submit(workers, ("environment", "CUDA_VISIBLE_DEVICES"), ("print", "among the paths"))
        workers.finish()
    assert made.delivered == ["3", ""]
    out, err = capfd.readouterr()
    assert (out, sorted(err.split("\n"))) == ("", ["", "among the paths", "to the descriptor"])


def test_a_reader_that_has_gone_ends_everything() -> None:
    made = Rows()

    def check() -> None:
        if made.rows:
            raise ReaderClosed

    started = time.monotonic()
    with pytest.raises(ReaderClosed):
        made.run(("say", 0), ("sleep", 60), check=check)
    assert time.monotonic() - started < 20


PARENT = """
import sys, time
from functools import partial
from primecli.pipeline.local_workers import LocalWorkers
from tests.pipeline.small_workers import open_small
with LocalWorkers(open_small, [{}, {}]) as workers:
    for number in range(2):
        workers.submit("job", ("sleep", 100), print)
    while len(workers.pids) < 2:
        workers.wait()
    print(*workers.pids, flush=True)
    workers.finish()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_child_outlives_its_parent(number: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environment, text=True, **pipes) as parent:  # type: ignore[call-overload]
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(gone(pid) for pid in pids)
        parent.send_signal(number)
        parent.wait(20)
    assert eventually(lambda: all(gone(pid) for pid in pids))
