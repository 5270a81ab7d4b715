from __future__ import annotations

from pathlib import Path

from rich.console import Console

from primecli.report.live import render
from primecli.report.runs import find_run
from tests.made_runs import make_run, write_summary
from tests.report.running import at, iteration_running


def screen(root: Path, total: int | None = None, now: float = 0.0, *, height: int = 50, width: int = 120) -> str:
    """What a terminal of this size would show."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(find_run(root, may_be_empty=True), total, now, height=height, width=width))
    console.file.close()
    return console.export_text()


def test_the_table_shows_the_numbers_that_fit(tmp_path: Path) -> None:
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


def test_what_the_prm_has_earned_is_shown_where_it_counts(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    assert "process share" not in screen(tmp_path)
    metrics = {"process_trust": 0.42, "process_share": 0.21, "prm_pair_accuracy": 0.71}
    write_summary(tmp_path / "1" / "compute-advantages", "compute-advantages", metrics=metrics)
    text = screen(tmp_path)
    assert "PRM pairs   trust   process share" in text
    row = next(line for line in text.splitlines() if line.split()[:1] == ["1"])
    assert {"0.42", "0.21"} <= {*row.split()}


def test_the_learning_rate_is_the_one_that_was_used(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    write_summary(tmp_path / "policy" / "1", "update-policy", metrics={"lr": 7.75e-6}, config={"lr": 1e-5})
    text = screen(tmp_path, width=200)
    heading, row = (line.split() for line in text.splitlines() if line.split()[:1] in (["iteration"], ["1"]))
    assert heading[-1] == "lr"
    assert row[-1] == "7.75e-06"


def test_the_time_left_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=3)  # one starts every five minutes
    with iteration_running(tmp_path, 4, 20):
        text = screen(tmp_path, 10, at(22))
    assert "iteration 4: generate running, 0 rollouts, 2 min 0 s" in text
    assert "about 3 min 0 s left of this iteration; about 33 min 0 s left of 10 iterations" in text


def test_an_empty_directory_is_a_loop_that_has_not_started(tmp_path: Path) -> None:
    assert "nothing is running" in screen(tmp_path)
