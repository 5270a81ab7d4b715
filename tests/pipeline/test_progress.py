from __future__ import annotations

import re
from typing import Any

import pytest

from primecli.pipeline import progress
from primecli.pipeline.progress import Progress, duration


def test_plain_lines_come_now_and_then(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress("verify", "rollouts") as shown:
        now += 1000  # waiting for input counts neither as work nor towards the time between lines
        shown.advance(0, total=400)
        for _ in range(3):
            now += 6
            shown.advance(20)
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["primecli verify: 40 of 400 rollouts, 3.3/s, 1 min 48 s left"]


def test_a_rate_below_one_has_digits(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress("update-prm", "rollouts", total=900) as shown:
        shown.advance(0)
        now = 400.0
        shown.advance(16)
    assert capfd.readouterr().err == "primecli update-prm: 16 of 900 rollouts, 0.04/s, 6 h 8 min left\n"


def test_the_first_of_many_that_end_together_say_nothing_of_the_rest(
    capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress("generate", "rollouts", total=320) as shown:
        shown.together = True
        shown.advance(0)
        for count in (2, 158):
            now += 20
            shown.advance(count)
    assert capfd.readouterr().err.splitlines() == [
        "primecli generate: 2 of 320 rollouts, 0.1/s",
        "primecli generate: 160 of 320 rollouts, 4.0/s, 40.0 s left",
    ]


def test_quiet_is_quiet(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Progress("verify", "rollouts", quiet=True) as shown:
        shown.advance(1, total=2)
    assert capfd.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_rate_and_time_left(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress, "in_pipeline", lambda: False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("verify", "rollouts") as shown:
        shown.advance(1, total=4)
        shown.advance(1)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capfd.readouterr().err)
    assert "primecli verify" in text
    assert "2/4" in text
    assert "left" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.96, "60.0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")]
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_total_that_was_too_low_grows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    shown = progress.Progress("verify", "rollouts", total=10)
    shown.advance(0)
    shown.advance(14)
    line = capsys.readouterr().err
    assert "14 of 14 rollouts" in line
    assert "-" not in line.split(":")[1]
