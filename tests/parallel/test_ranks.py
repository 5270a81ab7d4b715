"""Which ranks a process is one of, from its environment; and the words in which one says why it failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from primecli.errors import UsageError
from primecli.parallel import ranks
from primecli.warm.protocol import FAILURES

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = (
    *("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"),
    "SLURM_STEP_ID",
)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher."""
    for name in (*VARIABLES, *SLURM, FAILURES):
        monkeypatch.delenv(name, raising=False)


def test_a_process_by_itself_is_no_rank() -> None:
    assert ranks.place() is None
    assert ranks.join() is None


def test_torchrun_says_where_a_rank_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("9", "16", "1", "gpu07", "29400"), strict=True):
        monkeypatch.setenv(name, value)
    assert ranks.place() == ranks.Place(9, 16, 1, "gpu07", 29400)


def test_so_does_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(SLURM, ("16", "9", "1", "gpu[07-08]", "31000", "7"), strict=True):
        monkeypatch.setenv(name, value)
    assert ranks.place() == ranks.Place(9, 16, 1, "gpu07", 25007)
    monkeypatch.setenv("MASTER_PORT", "29400")
    assert ranks.place() == ranks.Place(9, 16, 1, "gpu07", 29400)


def test_a_step_of_one_task_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the shell of an interactive job, whose allocation has many tasks."""
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert ranks.place() is None


def test_a_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK=first: is not a number"):
        ranks.place()


def test_a_failure_goes_to_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ranks.report_failure("the disk is full", 1, lost=False)
    monkeypatch.setenv(FAILURES, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks.report_failure("the disk is full", 1, lost=False)
    assert [path.name for path in tmp_path.iterdir()] == ["3.json"]
    assert json.loads((tmp_path / "3.json").read_text()) == {"code": 1, "text": "the disk is full", "lost": False}
