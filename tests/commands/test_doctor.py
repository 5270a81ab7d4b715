from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.setup import doctor_checks
from primecli.warm.protocol import VARIABLE


def test_all_checks_pass_here_with_a_whole_iteration(
    monkeypatch: pytest.MonkeyPatch, forked: Mapping[str, str], tmp_path: Path, capfd: Any
) -> None:
    """Even if the user's own settings would break the iteration; and nothing is left behind."""
    monkeypatch.setenv("PRIMECLI_GENERATE_N", "nonsense")
    monkeypatch.setenv(VARIABLE, forked[VARIABLE])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cli.run(["doctor", "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert result["ok"] is True
    checks = {check["name"]: check for check in result["checks"]}
    assert {"python", "primecli", "torch", "cpu", "gpu", "collectives", "ray", "disk", "sandbox", "iteration"} <= set(
        checks
    )
    assert checks["iteration"]["status"] == "ok"
    assert checks["iteration"]["found"].startswith("7 stages on 4 prompts")
    assert list(tmp_path.glob("primecli-*")) == []
    assert err.count("\n") == 1


def test_a_failed_check_gives_a_line_on_stderr_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    class Installed:
        requires = ("nowhere>=1",)
        metadata = Message()

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    monkeypatch.setattr(metadata, "version", version)
    for name in ("accelerators", "collectives"):  # importing torch takes seconds
        monkeypatch.setattr(doctor_checks, name, lambda: iter(()))
    assert cli.run(["doctor", "--no-iteration"]) == 1
    out, err = capfd.readouterr()
    assert err == "primecli doctor: nowhere: not installed (pip install 'nowhere>=1')\n"
    row = next(line for line in out.splitlines() if "nowhere" in line)
    assert "failed" in row
    assert "pip install 'nowhere>=1'" in out
