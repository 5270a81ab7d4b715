from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from primecli.files import lock
from primecli.report.live import activities, finished, is_over, render, seconds_left
from primecli.report.runs import find_run
from tests.builders import rollouts, write_shards
from tests.made_runs import make_run, write_summary


def at(minute: int, second: int = 0) -> float:
    """That time of the made runs' day."""
    return datetime.fromisoformat(f"2026-01-02T03:{minute:02d}:{second:02d}+00:00").timestamp()


@contextlib.contextmanager
def begun(root: Path, iteration: int, minute: int, *, rows: int = 0, **config: int) -> Iterator[None]:
    """An iteration whose generate is at work and has written so many rollouts; both updates hold their locks."""
    directory = root / str(iteration) / "generate"
    directory.mkdir(parents=True)
    if rows:
        write_shards(directory, rollouts(rows, 1), per_shard=rows // 2)
        (directory / "rollouts-00001-of-00002.parquet").unlink()
    write_summary(directory, "generate", status="running", minute=minute, config=config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(directory / ".primecli.lock", "it"))
        for name in ("policy", "prm"):
            stack.enter_context(lock(root / name / f".{iteration}.lock", "it"))
        yield


def screen(root: Path, total: int | None = None, now: float = 0.0, *, height: int = 50, width: int = 120) -> str:
    """What would stand on a terminal of that size."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(find_run(root, may_be_empty=True), total, now, height=height, width=width))
    console.file.close()
    return console.export_text()


def test_stages_at_work_are_told_with_what_they_have_done(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=2)
    with begun(tmp_path, 3, 15, rows=6):
        found = [activity.text() for activity in activities(find_run(tmp_path), at(16, 5))]
    assert found == [
        "iteration 3: generate at work, 3 rollouts (1 of 2 shards), 1 min 5 s",
        "iteration 3: update-prm waits for its input",
        "iteration 3: update-policy waits for its input",
    ]


def test_how_many_there_will_be_comes_from_the_options(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    with begun(tmp_path, 2, 10, rows=6, n=4, batch_prompts=300):
        assert "3 of 1,200 rollouts" in activities(find_run(tmp_path), at(10))[0].text()


def test_an_update_is_at_work_when_nothing_before_it_is(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    with lock(tmp_path / "policy" / ".2.lock", "it"):
        assert [activity.text() for activity in activities(find_run(tmp_path), 0.0)] == [
            "iteration 2: update-policy at work"
        ]
    assert activities(find_run(tmp_path), 0.0) == []


def test_what_was_killed_or_failed_last_is_told(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    write_summary(tmp_path / "2" / "generate", "generate", status="running")
    write_summary(tmp_path / "2" / "verify", "verify", status="failed", error="no\nspace")
    found = [activity.text() for activity in activities(find_run(tmp_path), 0.0)]
    assert found == ["iteration 2: generate killed, 0 rollouts", "iteration 2: verify failed, no space"]


def test_the_time_left_is_from_what_iterations_took(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=3)  # one begins every five minutes
    with begun(tmp_path, 4, 20):
        run = find_run(tmp_path)
        doing = activities(run, at(22))
        assert seconds_left(run, doing, 10, at(22)) == (3 * 60, 3 * 60 + 6 * 300)
        assert seconds_left(run, doing, None, at(22)) == (3 * 60, None)
        assert seconds_left(run, doing, 4, at(59)) == (0.0, 0.0)  # late: never below nothing
        assert "about 3 min 0 s left of this iteration; about 33 min 0 s left of 10 iterations" in screen(
            tmp_path, 10, at(22)
        )
    run = find_run(tmp_path)
    assert seconds_left(run, activities(run, at(22)), 10, at(22)) == (None, None)  # killed: nothing is at work


def test_nothing_is_estimated_before_an_iteration_has_ended(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    (tmp_path / "eval").rename(tmp_path.parent / "eval-elsewhere")
    run = find_run(tmp_path)
    assert seconds_left(run, activities(run, at(6)), 10, at(6)) == (None, None)


def test_the_table_has_the_numbers_and_what_fits(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=30)
    text = screen(tmp_path)
    assert "iteration   rollouts   eval   training   PRM pairs   entropy" in text
    row = next(line for line in text.splitlines() if line.split()[:1] == ["30"])
    assert row.split()[:6] == ["30", "480", "3.2", "3", "3.5", "0.0333"]
    narrow = screen(tmp_path, height=20, width=50)
    assert max(len(line) for line in narrow.splitlines()) <= 50
    assert "training" in narrow
    assert "entropy" not in narrow
    assert "and 20 earlier iterations" in narrow
    assert narrow.count("\n") <= 20


def test_an_empty_directory_is_a_loop_that_has_not_begun(tmp_path: Path) -> None:
    assert "nothing is at work" in screen(tmp_path)


def test_it_is_over_when_the_last_iteration_is_finished_and_nothing_works(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=3)
    run = find_run(tmp_path)
    assert (finished(run), is_over(run, 3), is_over(run, 4), is_over(run, None)) == (3, True, False, False)
    with lock(tmp_path / "policy" / ".3.lock", "it"):
        assert not is_over(find_run(tmp_path), 3)


@pytest.mark.parametrize("status", ["complete", "stopped-by-reader"])
def test_a_stage_that_was_stopped_by_its_reader_is_done(tmp_path: Path, status: str) -> None:
    write_summary(tmp_path / "1" / "generate", "generate", status=status)  # type: ignore[arg-type]
    assert activities(find_run(tmp_path), 0.0) == []
