"""What `primecli watch --log` writes: every number of an iteration once, as it comes, or again where it has changed."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.report.iteration_log import by_iteration
from primecli.report.live import SETTLED_SECONDS, has_ended
from primecli.report.runs import find_run
from tests.log_files import read_parts, scalars
from tests.made_runs import make_run, write_summary


@pytest.fixture(autouse=True)
def offline(wandb_offline: None) -> None:
    """No test here reaches an account."""


def rounded(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """In the precision of event files."""
    return [(step, float(np.float32(value))) for step, value in points]


def long_ago(run: Path) -> Path:
    """The run, its summaries written in another year."""
    for path in run.rglob("_summary.json"):
        os.utime(path, (1e9, 1e9))
    return run


def test_numbers_are_those_of_the_summaries(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found = by_iteration(find_run(run))
    assert found["verify/accuracy"] == {1: 0.1, 2: 0.2, 3: 0.3}
    assert found["eval/accuracy"] == {0: 0.2, 3: 0.5}
    assert found["update_prm/pair_accuracy_before"] == {1: 0.6, 2: 0.7, 3: 0.8}
    assert found["update_policy/kl_update"] == {1: 0.01, 2: 0.02, 3: 0.03}
    assert found["generate/response_tokens"] == {1: 11, 2: 12, 3: 13}
    assert found["seconds/update_policy"] == {1: 10, 2: 10, 3: 10}
    assert found["rollouts"] == {1: 16, 2: 32, 3: 48}


def test_a_run_that_has_ended_is_logged_at_once(tmp_path: Path, primecli: Any) -> None:
    run = long_ago(make_run(tmp_path / "run"))
    result = primecli("watch", run, "--log", "tensorboard", "--log", "wandb")
    assert "PRM pairs" in "\n".join(map(str, result.paths))
    wanted = by_iteration(find_run(run))
    found = scalars(run / "log/tensorboard/iterations")
    assert found == {name: rounded(sorted(values.items())) for name, values in wanted.items()}
    (part,) = read_parts(run / "log")
    assert part.run_id == (run / "log/wandb-run-id").read_text().strip() + "-iterations"
    assert part.axes == {"*": "iteration"}
    assert [row["iteration"] for row in part.rows] == [0, 1, 2, 3]
    seen = {name: {row["iteration"]: row[name] for row in part.rows if name in row} for name in wanted}
    assert seen == wanted


def test_what_is_logged_is_not_logged_again(tmp_path: Path, primecli: Any) -> None:
    run = long_ago(make_run(tmp_path / "run", iterations=2))
    command = ["watch", run, "--once", "--log", "tensorboard", "--log", "wandb"]
    primecli(*command)
    primecli(*command)
    assert len(read_parts(run / "log")) == 1
    assert [step for step, _ in scalars(run / "log/tensorboard/iterations")["verify/accuracy"]] == [1, 2]
    write_summary(run / "1/verify", "verify", rows=16, metrics={"accuracy": 0.75})  # run again with other options
    write_summary(run / "3/verify", "verify", rows=16, metrics={"accuracy": 0.5})
    primecli(*command)
    found = scalars(run / "log/tensorboard/iterations")
    assert found["verify/accuracy"] == rounded([(1, 0.75), (2, 0.2), (3, 0.5)])
    assert found["update_policy/entropy"] == rounded([(1, 1.0), (2, 0.5)])
    rows = read_parts(run / "log")[-1].rows
    assert [(row["iteration"], row["verify/accuracy"]) for row in rows] == [(1, 0.75), (3, 0.5)]
    assert not any("update_policy/entropy" in row for row in rows)


def test_without_a_terminal_it_follows_to_the_last_iteration(tmp_path: Path, primecli: Any) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    events = run / "log/tensorboard/iterations"

    def go_on() -> None:
        while not events.exists():
            time.sleep(0.05)
        for iteration in (2, 1):  # of the first one something is changed while it is watched
            write_summary(run / str(iteration) / "verify", "verify", rows=16, metrics={"accuracy": 0.5})
            time.sleep(0.5)
        write_summary(run / "policy/2", "update-policy", metrics={"entropy": 0.25})

    loop = threading.Thread(target=go_on)
    loop.start()
    primecli("watch", run, "--log", "tensorboard", "--iterations", 2, "--interval", 0.2)
    loop.join()
    found = scalars(events)
    assert found["verify/accuracy"] == rounded([(1, 0.5), (2, 0.5)])
    assert found["update_policy/entropy"] == rounded([(1, 1.0), (2, 0.25)])
    assert found["update_policy/lr"] == rounded([(1, 1e-4)])


def test_a_run_has_ended_when_nothing_is_at_work_for_a_while(tmp_path: Path) -> None:
    run = long_ago(make_run(tmp_path / "run", iterations=1))
    assert has_ended(find_run(run), 1e9 + SETTLED_SECONDS + 1)
    assert not has_ended(find_run(run), 1e9 + SETTLED_SECONDS - 1)  # make may be about to start the next iteration
    (tmp_path / "empty").mkdir()
    assert not has_ended(find_run(tmp_path / "empty", may_be_empty=True), time.time())


def test_a_file_of_logged_values_that_is_broken_is_named(tmp_path: Path, primecli: Any) -> None:
    run = long_ago(make_run(tmp_path / "run", iterations=1))
    (run / "log").mkdir()
    (run / "log/wandb-iterations-logged.json").write_text(json.dumps({"loss": [1]}))
    result = primecli("watch", run, "--log", "wandb", check=False)
    assert (result.code, "wandb-iterations-logged.json: is not what watch has written" in result.line()) == (3, True)
