"""Safetensors files read by rows, and written by several ranks into one file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from primecli.errors import InputError
from primecli.files import HASH_DIGITS, file_hash
from primecli.models import slices
from primecli.models.slices import SharedFile, TensorFiles, torch_name


def tensors() -> dict[str, torch.Tensor]:
    """Of several dtypes and shapes, in an order that is not the file's."""
    torch.manual_seed(0)
    return {
        "z.weight": torch.randn(7, 3),
        "a.weight": torch.randn(5, 2, 2).to(torch.bfloat16),
        "b.half": torch.randn(4).to(torch.float16),
        "count": torch.tensor(3),
        "m.double": torch.randn(2, 3, dtype=torch.float64),
        "flags": torch.tensor([True, False, True]),
        "ü.empty": torch.empty(0, 4),
    }


def windows(rows: int, world: int) -> list[tuple[int, int]]:
    height = -(-rows // world)
    return [(min(rank * height, rows), min((rank + 1) * height, rows)) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_ranks_write_what_safetensors_writes(world: int, metadata: dict[str, str], tmp_path: Path) -> None:
    whole = tensors()
    save_file(whole, tmp_path / "expected.safetensors", metadata or None)
    entries = {name: (tuple(tensor.shape), torch_name(tensor.dtype)) for name, tensor in whole.items()}
    files = [SharedFile(tmp_path / "written.safetensors", entries, metadata) for _ in range(world)]
    files[0].create()
    for rank in reversed(range(world)):
        with files[rank].open() as writer:
            for name, tensor in whole.items():
                start, stop = windows(len(tensor), world)[rank] if tensor.ndim else (0, 1)
                writer.write(name, tensor[start:stop] if tensor.ndim else tensor, start)
    assert (tmp_path / "written.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_a_whole_file_is_what_safetensors_writes_and_its_hash_is_taken_on_the_way(
    metadata: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "AT_ONCE", 5)  # bytes, so that everything takes several pieces
    whole = tensors()
    save_file(whole, tmp_path / "expected.safetensors", metadata or None)
    entries = {name: (tuple(tensor.shape), torch_name(tensor.dtype)) for name, tensor in whole.items()}
    digest = hashlib.sha256()
    SharedFile(tmp_path / "x.safetensors", entries, metadata).write_whole(whole.__getitem__, digest=digest)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert file_hash(tmp_path / "x.safetensors") == digest.hexdigest()[:HASH_DIGITS]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_the_first_tensor_begins_at_a_multiple_of_the_alignment(alignment: int, tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "x.safetensors", {"w": ((6, 5), "bfloat16")}, alignment=alignment)
    values = torch.randn(6, 5)
    file.write_whole(lambda name: values)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % alignment == 0
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], values.to(torch.bfloat16))


def test_writing_ends_when_it_is_told_to(tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "x.safetensors", {"w": ((1,), "float32")})

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file.write_whole(lambda name: torch.zeros(1), stop)


def test_rows_are_written_in_the_dtype_of_the_file(tmp_path: Path) -> None:
    values = torch.randn(6, 5)
    file = SharedFile(tmp_path / "half.safetensors", {"w": ((6, 5), "bfloat16")})
    file.create()
    with file.open() as writer:
        writer.write("w", values[:2], 0)
        writer.write("w", values[2:], 2)
    assert torch.equal(load_file(tmp_path / "half.safetensors")["w"], values.to(torch.bfloat16))


def test_rows_are_read_as_they_are_stored(tmp_path: Path) -> None:
    whole = tensors()
    names = sorted(whole)
    save_file({name: whole[name] for name in names[:3]}, tmp_path / "1.safetensors")
    save_file({name: whole[name] for name in names[3:]}, tmp_path / "2.safetensors")
    with TensorFiles([tmp_path / "1.safetensors", tmp_path / "2.safetensors"]) as files:
        assert torch.equal(files.rows("z.weight", 2, 5), whole["z.weight"][2:5])
        assert torch.equal(files.rows("a.weight", 4, 5), whole["a.weight"][4:])
        assert torch.equal(files.rows("count", 0, 1), whole["count"])
        assert files.shape("a.weight") == (5, 2, 2)
        assert files.dtype("a.weight") == "BF16"
        assert "absent" not in files


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(InputError, match=r"x.safetensors: cannot be read"):
        TensorFiles([tmp_path / "x.safetensors"])
