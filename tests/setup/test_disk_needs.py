from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from primecli.setup import doctor_checks
from primecli.setup.disk_needs import DiskNeeds, disk_needs, free_bytes


def test_the_sizes_come_from_all_files_of_a_model_and_count_numbers_only(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), np.float16)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file(
        {"b": np.zeros(5, np.float16), "ids": np.zeros(7, np.int64)}, tmp_path / "model-00002-of-00002.safetensors"
    )
    assert disk_needs(str(tmp_path)) == DiskNeeds(17, 2)


@pytest.mark.parametrize("content", [None, b"", b"no header"])
def test_a_model_whose_files_cannot_be_read_has_no_known_size(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    assert disk_needs(str(tmp_path)) is None
    assert disk_needs("nobody/has-this") is None
    assert disk_needs("no such thing") is None
    (check,) = doctor_checks.disk_for_training(str(tmp_path))
    assert (check.status, "no readable safetensors files" in check.found) == ("note", True)


def test_seven_billion_parameters_in_bfloat16() -> None:
    """By hand: 2 + 4 + 8 bytes each, two checkpoints an iteration, three iterations' at once."""
    needs = DiskNeeds(7_600_000_000, 2)
    assert needs.checkpoint() == 106_400_000_000
    assert needs.iteration() == 212_800_000_000
    assert needs.at_once() == 638_400_000_000
    for words in ("106 GB (14 bytes", "213 GB; the loop needs 638 GB with KEEP=last, 15.2 GB more for each evaluation"):
        assert words in needs.in_words()


def test_doctor_notes_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "model.safetensors")
    for free, status in ((71_999, "note"), (72_000, "ok")):
        monkeypatch.setattr(doctor_checks, "free_bytes", lambda _, free=free: free)
        (check,) = doctor_checks.disk_for_training(str(tmp_path))
        assert (check.status, check.hint is None) == (status, status == "ok")
        assert "needs 72 kB with KEEP=last" in check.found


def test_the_free_space_of_a_directory_that_is_not_there_yet_is_that_of_its_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.01)
