"""A sample of `make chaos` that is always the same; the campaign itself takes an hour."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks after imports, as primecli warm does")
def test_broken_input_gives_one_line_and_a_killed_stage_the_same_bytes_when_run_again() -> None:
    sample = ["--rounds", "1", "--stage", "filter", "--stage", "compute-advantages", "--count", "12"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *sample],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
