from __future__ import annotations

import time
from pathlib import Path

import pytest

from primecli.files import lock
from primecli.report.activity import (
    IDLE_SECONDS,
    activities,
    finished_iterations,
    has_ended,
    is_over,
    seconds_left,
)
from primecli.report.runs import find_run
from tests.made_runs import age, make_run, write_summary
from tests.report.running import at, iteration_running


def test_running_stages_are_listed_with_their_progress(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=2)
    with iteration_running(tmp_path, 3, 15, rows=6):
        current = [activity.text() for activity in activities(find_run(tmp_path), at(16, 5))]
    assert current == [
        "iteration 3: generate running, 3 rollouts (1 of 2 shards), 1 min 5 s",
        "iteration 3: update-prm waiting for input",
        "iteration 3: update-policy waiting for input",
    ]


def test_the_number_of_rollouts_to_come_is_from_the_options(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    with iteration_running(tmp_path, 2, 10, rows=6, n=4, batch_prompts=300):
        assert "3 of 1,200 rollouts" in activities(find_run(tmp_path), at(10))[0].text()


def test_an_update_is_running_when_no_earlier_stage_is(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    with lock(tmp_path / "policy" / ".2.lock", "it"):
        assert [activity.text() for activity in activities(find_run(tmp_path), 0.0)] == [
            "iteration 2: update-policy running"
        ]
    assert activities(find_run(tmp_path), 0.0) == []


def test_stages_killed_or_failed_in_the_last_iteration_are_listed(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    write_summary(tmp_path / "2" / "generate", "generate", status="running")
    write_summary(tmp_path / "2" / "verify", "verify", status="failed", error="no\nspace")
    current = [activity.text() for activity in activities(find_run(tmp_path), 0.0)]
    assert current == ["iteration 2: generate killed, 0 rollouts", "iteration 2: verify failed, no space"]


@pytest.mark.parametrize("status", ["complete", "stopped-by-reader"])
def test_a_stage_stopped_by_its_reader_is_done(tmp_path: Path, status: str) -> None:
    write_summary(tmp_path / "1" / "generate", "generate", status=status)  # type: ignore[arg-type]
    assert activities(find_run(tmp_path), 0.0) == []


def test_the_time_left_is_estimated_from_earlier_iterations(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=3)  # one starts every five minutes
    with iteration_running(tmp_path, 4, 20):
        run = find_run(tmp_path)
        current = activities(run, at(22))
        assert seconds_left(run, current, 10, at(22)) == (3 * 60, 3 * 60 + 6 * 300)
        assert seconds_left(run, current, None, at(22)) == (3 * 60, None)
        assert seconds_left(run, current, 4, at(59)) == (0.0, 0.0)  # late, but never negative
    run = find_run(tmp_path)
    assert seconds_left(run, activities(run, at(22)), 10, at(22)) == (None, None)  # killed: nothing is running


def test_nothing_is_estimated_before_the_first_iteration_is_finished(tmp_path: Path) -> None:
    make_run(tmp_path / "run", iterations=1)
    (tmp_path / "run" / "eval").rename(tmp_path / "eval-elsewhere")
    run = find_run(tmp_path / "run")
    assert seconds_left(run, activities(run, at(6)), 10, at(6)) == (None, None)


def test_a_run_is_over_when_its_last_iteration_is_finished_and_nothing_runs(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=3)
    run = find_run(tmp_path)
    assert (finished_iterations(run), is_over(run, 3), is_over(run, 4), is_over(run, None)) == (3, True, False, False)
    with lock(tmp_path / "policy" / ".3.lock", "it"):
        assert not is_over(find_run(tmp_path), 3)


def test_a_run_has_ended_when_nothing_has_been_written_for_a_while(tmp_path: Path) -> None:
    run, modified = age(make_run(tmp_path / "run", iterations=1)), 1e9
    assert has_ended(find_run(run), modified + IDLE_SECONDS + 1)
    assert not has_ended(find_run(run), modified + IDLE_SECONDS - 1)  # make may be about to start the next iteration
    (tmp_path / "empty").mkdir()
    assert not has_ended(find_run(tmp_path / "empty", may_be_empty=True), time.time())
