"""Models that are not whole, or of another kind, are refused before any work, with what to do about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from primecli.errors import InputError
from primecli.models.device import resolve_placement
from primecli.models.fitness import check_directory
from primecli.models.identity import resolve_model
from primecli.models.loading import load_critic, load_model


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of a tiny model, to be spoiled."""
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in change(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def prefixed(prefix: str) -> Callable[[Path], None]:
    return lambda directory: rewrite(
        directory, lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    )


def without(part: str) -> Callable[[Path], None]:
    return lambda directory: rewrite(
        directory, lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}
    )


def cut_off(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def in_missing_files(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def as_other_format(*names: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        for name in names:
            (directory / name).write_text("x")

    return change


def adapters_alone(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "adapter_config.json").write_text("{}")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (cut_off, "is cut off: "),
    "an empty file of weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "is no whole safetensors file"),
    "a page of HTML": (lambda d: (d / "model.safetensors").write_text("<html>" * 9), "is no whole safetensors file"),
    "one of two files": (in_missing_files, "lacks model-00002-of-00002.safetensors of 2 files of weights"),
    "GGUF": (as_other_format("a.gguf"), "gguf_file=FILE"),
    "pickles": (as_other_format("pytorch_model.bin"), "save_pretrained(NEW)"),
    "nothing": (as_other_format(), "give a checkpoint directory"),
    "adapters": (adapters_alone, "merge_and_unload()"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_whole_model(name: str, model: Path) -> None:
    spoil, message = FILES[name]
    check_directory(model, "model")
    spoil(model)
    with pytest.raises(InputError) as info:
        resolve_model(str(model))
    assert message in str(info.value)


def test_a_gguf_file_is_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.gguf: is GGUF, and primecli loads safetensors \(convert it: "):
        resolve_model(str(tmp_path / "x.gguf"))


WEIGHTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a layer": (without("layers.1.mlp"), "layers.1.mlp.down_proj.weight", "write or download them again"),
    "compiled": (prefixed("_orig_mod."), " and 2", "saved from a compiled model"),
    "data-parallel": (prefixed("module."), " and 2", "saved from a data-parallel wrapper"),
    "adapters inside": (prefixed("base_model.model."), " and 2", "merge_and_unload()"),
    "another architecture": (prefixed("transformer."), " and 2", "belongs to another model"),
    "another shape": (lambda d: edit_config(d, intermediate_size=64), "has another shape", "again"),
}


@pytest.mark.parametrize("load", [load_model, load_critic])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fit_are_never_random(name: str, load: Any, model: Path) -> None:
    spoil, named, advice = WEIGHTS[name]
    spoil(model)
    with pytest.raises(InputError) as info:
        load(model, resolve_placement("cpu", "float32"))
    assert named in str(info.value)
    assert advice in str(info.value)


def test_a_head_that_is_not_tied_must_be_there(model: Path) -> None:
    edit_config(model, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"lacks the weights lm_head\.weight \(if the model shares its embedding"):
        load_model(model, resolve_placement("cpu", "float32"))
    load_critic(model, resolve_placement("cpu", "float32"))  # which has no such head


def test_quantised_weights_are_refused(model: Path) -> None:
    edit_config(model, quantization_config={"quant_method": "gptq", "bits": 4})
    for load in (load_model, load_critic):
        with pytest.raises(InputError, match=r"its weights are quantised \(gptq\)"):
            load(model, resolve_placement("cpu", "float32"))
