from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from primecli import cli
from primecli.setup import doctor


def test_all_is_well_here_with_a_whole_iteration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    """Also where the user's own settings would break the iteration, and nothing is left behind."""
    monkeypatch.setenv("PRIMECLI_GENERATE_N", "nonsense")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cli.run(["doctor", "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["ok"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "primecli", "torch", "cpu", "disk", "sandbox", "iteration"} <= set(checks)
    assert checks["iteration"]["status"] == "ok"
    assert checks["iteration"]["found"].startswith("7 stages on 4 prompts")
    assert list(tmp_path.glob("primecli-*")) == []
    assert err.count("\n") == 1


def test_a_failed_check_is_a_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: [Requirement("nowhere>=1")])
    monkeypatch.setattr(doctor, "accelerators", lambda: iter(()))
    assert cli.run(["doctor", "--no-iteration"]) == 1
    out, err = capfd.readouterr()
    assert err == "primecli doctor: nowhere: is not installed (pip install 'nowhere>=1')\n"
    row = next(line for line in out.splitlines() if "nowhere" in line)
    assert "failed" in row
    assert "pip install 'nowhere>=1'" in out
