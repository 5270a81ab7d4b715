from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from primecli.models.device import keep_freed_memory
from tests.benchmarks import loop, trl_loop
from tests.benchmarks.measuring import Cost, Figure, in_turn, peak_mib, ratio, reset_peak, run_process, show


def test_a_ratio_is_of_the_same_round() -> None:
    slow_machine = [2.0, 20.0, 2.0]
    assert ratio([1.0, 10.0, 1.0], slow_machine).median == 0.5
    assert ratio([1.0, 30.0, 1.0], slow_machine).high == 1.5


def test_sides_are_measured_in_turn_and_each_is_first_once() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], int]:
        def measure() -> int:
            order.append(name)
            return len(order)

        return measure

    found = in_turn({name: side(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert found == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_a_process_is_timed_and_its_failure_is_not_hidden() -> None:
    code = "import json, time; time.sleep(0.2); print('words'); print(json.dumps({'peak_mib': 3.5, 'steps': 2}))"
    cost = run_process([sys.executable, "-c", code])
    assert 0.2 <= cost.seconds < 10
    assert (cost.mebibytes, cost.said["steps"]) == (3.5, 2)
    with pytest.raises(SystemExit, match="no such thing"):
        run_process([sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.mark.parametrize("keeps_freed", [False, True])
def test_peak_memory_is_of_what_was_held_since_the_reset(keeps_freed: bool) -> None:
    if keeps_freed:
        keep_freed_memory()
    block = bytearray(200 << 20)
    del block
    reset_peak()
    before = peak_mib()
    block = bytearray(100 << 20)
    assert 90 < peak_mib() - before < 150
    assert len(block) == 100 << 20


def test_a_missed_goal_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [Figure("fast", 0.9, "0.90×", "other 1 s", "<= 1.00"), Figure("slow", 1.2, "1.20×", "other", "<= 1.00")]
    show("a title", figures, tmp_path / "figures.json", more=[1])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[-2:]] == ["met", "MISSED"]
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["figures"]["slow"] == {"value": 1.2, "baseline": "other", "goal": "<= 1.00", "met": False}
    assert written["more"] == [1]


def test_what_stages_add_comes_to_the_iteration() -> None:
    times = "start 10.0\ngenerate 14.0\nverify 14.5\nstart 20.0\ngenerate 22.0\nverify 22.5\n"
    assert loop.marginal_seconds(times) == {"generate": 3.0, "verify": 0.5}


def test_trl_grades_as_verify_does() -> None:
    from primecli.verifiers import Task
    from primecli.verifiers.math.verifier import MathVerifier

    verifier = MathVerifier()
    for response in ("7+5=2\n\\boxed{2}", "\\boxed{3}", "2", "\\boxed{3}\\boxed{2}", ""):
        (ours,) = trl_loop.is_right([response], ["2"])
        if "boxed" in response:
            assert ours == verifier.grade(Task(response, "2")).reward
        else:
            assert ours == 0.0


WORK = {"steps": 8, "rows": [512], "rewards": [0.3], "response_tokens": [46.0]}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"steps": 7}, "7 optimizer steps"),
        ({"rows": [500]}, r"trained on \[500\]"),
        ({"response_tokens": [52.0]}, "responses of 52"),
        ({"rewards": [0.6]}, "accuracy is 0.600"),
    ],
)
def test_sides_that_do_other_work_are_refused(changed: dict[str, object], reason: str) -> None:
    theirs = Cost(1.0, 0.0, WORK)
    loop.check_same_work(theirs, theirs, 512)
    with pytest.raises(SystemExit, match=reason):
        loop.check_same_work(Cost(1.0, 0.0, {**WORK, **changed}), theirs, 512)
