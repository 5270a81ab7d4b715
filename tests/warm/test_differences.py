from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from primecli.warm.differences import differing_variable, files_on_disk, fork_problem

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm needs Linux")


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({"A": "1"}, {"A": "1"}, None),
        ({"A": "1"}, {"A": "2"}, "A is 2 here and 1 in the helper"),
        ({"NEVER_READ": "1"}, {}, None),
        ({}, {"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING is 1 here and unset in the helper"),
        ({}, {"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}, None),
        ({"OMP_NUM_THREADS": "1"}, {}, "OMP_NUM_THREADS is unset here, which a running process cannot adopt"),
    ],
)
def test_only_variables_that_an_import_may_have_read_count(
    ours: dict[str, str], theirs: dict[str, str], reason: str | None
) -> None:
    assert differing_variable(ours, theirs, {"A"}) == reason


def test_threads_and_cuda_forbid_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(os, "listdir", lambda path: ["1"])
    assert fork_problem() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert fork_problem() == "the helper has initialised CUDA"
    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"])
    assert fork_problem() == "the helper has 2 threads"


def test_changed_code_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "warm").mkdir()
    for name in ("warm/helper.py", "core/losses.py"):
        (tmp_path / name).write_text("1")
    before = files_on_disk(tmp_path)
    assert files_on_disk(tmp_path) == before
    assert any("torch" in path for path, *_ in before)
    (tmp_path / "core/losses.py").write_text("22")
    assert files_on_disk(tmp_path) != before
