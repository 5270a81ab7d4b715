"""Mapped tensors: whose pages they have, and what becomes of their file."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from primecli.models import mapped

MIB = 1 << 20


def own_bytes(path: Path) -> int:
    """Bytes of a mapped file of which this process has copies."""
    mine = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            mine = line.endswith(str(path))
        elif mine and line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{path} is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc tells what is mapped")
def test_pages_are_copied_at_once_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(MIB), "b": torch.ones(MIB)}, path)  # 12 MiB
    before = path.read_bytes()
    tensors = load_file(path)
    mapped.read_ahead(tensors.values())
    assert own_bytes(path) == 0
    mapped.copy_pages([tensors["b"]])
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (5, 14):
        assert 4 * MIB <= own_bytes(path) < 5 * MIB
    assert torch.equal(tensors["a"], torch.arange(MIB))
    assert torch.equal(tensors["b"], torch.ones(MIB))
    tensors["a"].add_(1)
    tensors["b"].add_(1)
    assert own_bytes(path) >= 12 * MIB
    assert path.read_bytes() == before


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    """As where a checkpoint is replaced, or an old one removed, while a stage still uses it."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save_file({"a": torch.arange(MIB)}, directory / "x.safetensors")
    tensor = load_file(directory / "x.safetensors")["a"]
    shutil.rmtree(directory)
    directory.mkdir()
    save_file({"a": torch.zeros(MIB)}, directory / "x.safetensors")
    assert torch.equal(tensor, torch.arange(MIB))


def test_a_tensor_at_an_odd_address_is_copied_to_an_even_one() -> None:
    whole = torch.arange(64.0)
    assert mapped.aligned(whole) is whole
    odd = mapped.aligned(whole[3:])
    assert odd.data_ptr() % mapped.ALIGNMENT == 0
    assert torch.equal(odd, whole[3:])


def test_tensors_that_are_not_mapped_are_left_alone() -> None:
    tensors = [torch.ones(3), torch.empty(0), torch.empty(5, device="meta")]
    mapped.read_ahead(tensors)
    mapped.copy_pages(tensors)
    assert torch.equal(tensors[0], torch.ones(3))
