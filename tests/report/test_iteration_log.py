"""What `primecli watch --log` writes: each number of an iteration once, as it arrives, and again if it changes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.report.iteration_log import by_iteration
from primecli.report.runs import find_run
from tests.log_files import read_parts, scalars
from tests.made_runs import age, make_run, write_summary


@pytest.fixture(autouse=True)
def offline(wandb_offline: None) -> None:
    """Keeps these tests from reaching a wandb account."""


def rounded(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Values in the precision of event files."""
    return [(step, float(np.float32(value))) for step, value in points]


def test_numbers_come_from_the_summaries(tmp_path: Path) -> None:
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
    run = age(make_run(tmp_path / "run"))
    result = primecli("watch", run, "--log", "tensorboard", "--log", "wandb")
    assert "PRM pairs" in "\n".join(map(str, result.paths))
    expected = by_iteration(find_run(run))
    found = scalars(run / "log/tensorboard/iterations")
    assert found == {name: rounded(sorted(values.items())) for name, values in expected.items()}
    (part,) = read_parts(run / "log")
    assert part.run_id == (run / "log/wandb-run-id").read_text().strip() + "-iterations"
    assert part.axes == {"*": "iteration"}
    assert [row["iteration"] for row in part.rows] == [0, 1, 2, 3]
    seen = {name: {row["iteration"]: row[name] for row in part.rows if name in row} for name in expected}
    assert seen == expected


def test_only_new_and_changed_values_are_logged_again(tmp_path: Path, primecli: Any) -> None:
    run = age(make_run(tmp_path / "run", iterations=2))
    command = ["watch", run, "--once", "--log", "tensorboard", "--log", "wandb"]
    primecli(*command)
    primecli(*command)
    assert len(read_parts(run / "log")) == 1
    assert [step for step, _ in scalars(run / "log/tensorboard/iterations")["verify/accuracy"]] == [1, 2]
    write_summary(run / "1/verify", "verify", rows=16, metrics={"accuracy": 0.75})  # rerun with other options
    write_summary(run / "3/verify", "verify", rows=16, metrics={"accuracy": 0.5})
    primecli(*command)
    found = scalars(run / "log/tensorboard/iterations")
    assert found["verify/accuracy"] == rounded([(1, 0.75), (2, 0.2), (3, 0.5)])
    assert found["update_policy/entropy"] == rounded([(1, 1.0), (2, 0.5)])
    rows = read_parts(run / "log")[-1].rows
    assert [(row["iteration"], row["verify/accuracy"]) for row in rows] == [(1, 0.75), (3, 0.5)]
    assert not any("update_policy/entropy" in row for row in rows)


def test_without_a_terminal_it_follows_until_the_last_iteration(tmp_path: Path, primecli: Any) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    events = run / "log/tensorboard/iterations"

    def continue_the_run() -> None:
        while not events.exists():
            time.sleep(0.05)
        for iteration in (2, 1):  # the first iteration changes while it is watched
            write_summary(run / str(iteration) / "verify", "verify", rows=16, metrics={"accuracy": 0.5})
            time.sleep(0.5)
        write_summary(run / "policy/2", "update-policy", metrics={"entropy": 0.25})

    loop = threading.Thread(target=continue_the_run)
    loop.start()
    primecli("watch", run, "--log", "tensorboard", "--iterations", 2, "--interval", 0.2)
    loop.join()
    found = scalars(events)
    assert found["verify/accuracy"] == rounded([(1, 0.5), (2, 0.5)])
    assert found["update_policy/entropy"] == rounded([(1, 1.0), (2, 0.25)])
    assert found["update_policy/lr"] == rounded([(1, 1e-4)])


def test_a_broken_file_of_logged_values_is_named(tmp_path: Path, primecli: Any) -> None:
    run = age(make_run(tmp_path / "run", iterations=1))
    (run / "log").mkdir()
    (run / "log/wandb-iterations-logged.json").write_text(json.dumps({"loss": [1]}))
    result = primecli("watch", run, "--log", "wandb", check=False)
    assert (result.code, "wandb-iterations-logged.json: loss: expected an object, found a list" in result.line()) == (
        3,
        True,
    )
