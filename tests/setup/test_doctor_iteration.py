from __future__ import annotations

from pathlib import Path

import pytest

import primecli
from primecli.setup import doctor_checks
from primecli.setup.doctor_iteration import run_pipeline


def test_without_an_installation_the_stages_come_from_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In whatever directory they run, and with the user's PYTHONPATH added."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "words.py").write_text("LINE = 'from the checkout'\n")
    package = tmp_path / "checkout" / "primecli"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("from words import LINE\nraise SystemExit(LINE)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    monkeypatch.setattr(doctor_checks, "DISTRIBUTION", "nothing-is-called-this")
    monkeypatch.setattr(primecli, "__file__", str(package / "__init__.py"))
    problem = run_pipeline([["stats"]], tmp_path / "elsewhere", 60)
    assert problem == "stats exited with code 1: from the checkout"


def test_a_failing_pipeline_names_the_stage_and_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1", "answer": "1"}\n')
    stages = [["verify", "nothing-there"], ["filter"], ["stats"]]
    problem = run_pipeline(stages, tmp_path, 120)
    assert problem is not None
    assert problem.startswith("verify exited with code 3: primecli verify: nothing-there: no such file")


def test_a_hanging_pipeline_is_stopped(tmp_path: Path) -> None:
    """No Python starts within a hundredth of a second."""
    problem = run_pipeline([["stats", "nothing-there"]], tmp_path, 0.01)
    assert problem is not None
    assert problem.startswith("stats had not finished after 0")
