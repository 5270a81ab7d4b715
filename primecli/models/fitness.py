"""Whether a model directory is whole and of a kind that can be loaded: found out from its files, in milliseconds.

What the tensors have to be called, only the model's class knows; `missing_weights` says what transformers found.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

from primecli.errors import InputError
from primecli.structures import parse_json, read_json

CONVERT_GGUF = (
    "convert it: AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE).save_pretrained(NEW), and the tokenizer "
    "likewise; transformers needs the packages gguf and accelerate for it"
)
CONVERT_PICKLES = (
    "convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW), and the tokenizer likewise"
)
MERGE_ADAPTER = (
    "merge them: peft's AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW), and the "
    "tokenizer likewise"
)
WRAPPERS: Mapping[str, str] = {
    "_orig_mod.": "it was saved from a compiled model: remove _orig_mod. from the names",
    "module.": "it was saved from a data-parallel wrapper: remove module. from the names",
    "base_model.model.": f"these are a model with adapters: {MERGE_ADAPTER}",
}
"""What to do about weights whose names all begin like this."""

LARGEST_HEADER = 100 << 20  # bytes; safetensors' own limit
SHOWN_NAMES = 3


class _Index(TypedDict):
    """What `model.safetensors.index.json` holds, as far as it matters here."""

    weight_map: dict[str, str]


def check_directory(directory: Path, name: str) -> None:
    """Raises InputError where a directory has no whole model in safetensors. name: as the user typed it."""
    if not (directory / "config.json").exists():
        if (directory / "adapter_config.json").exists():
            raise InputError(f"{name}: has adapters without the model beneath them", MERGE_ADAPTER)
        raise InputError(f"{name}: a model directory without config.json", _other_format(directory))
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{name}: a model directory without weights (*.safetensors)", _other_format(directory))
    for path in weights:
        check_file(path)
    index = directory / "model.safetensors.index.json"
    if index.exists() and not (directory / "model.safetensors").exists():
        files = set(read_json(index, _Index)["weight_map"].values())
        absent = sorted(file for file in files if not (directory / file).is_file())
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise InputError(f"{name}: lacks {absent[0]}{more} of {len(files)} files of weights", "download it again")


def _other_format(directory: Path) -> str:
    """What to do about a directory without safetensors."""
    if any(directory.glob("*.gguf")):
        return CONVERT_GGUF
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        return CONVERT_PICKLES
    return "give a checkpoint directory"


def check_file(path: Path) -> None:
    """Raises InputError where a safetensors file is not as long as its header says, or its header cannot be read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, LARGEST_HEADER):
            raise InputError(f"{path}: is no whole safetensors file", "it is damaged: write or download it again")
        header = parse_json(file.read(length), dict[str, Any], f"{path}: its header")
    ends = [
        tensor["data_offsets"][1]
        for key, tensor in header.items()
        if key != "__metadata__" and _has_offsets(tensor, f"{path}: its header")
    ]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = "cut off" if size < expected else "longer than its header says"
        raise InputError(
            f"{path}: is {what}: {size:,} of {expected:,} bytes", "it is damaged: write or download it again"
        )


def _has_offsets(tensor: Any, source: str) -> bool:
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)):
        raise InputError(f"{source} has a tensor without a place in the file", "it is damaged: download it again")
    return True


def quantisation(directory: Path) -> str | None:
    """How the weights are quantised, such as gptq; None where they are not."""
    config = read_json(directory / "config.json", dict[str, Any])
    found = config.get("quantization_config")
    if found is None:
        return None
    return str(found.get("quant_method") or "unknown") if isinstance(found, dict) else "unknown"


def check_unquantised(directory: Path) -> None:
    """Raises InputError for quantised weights, which can neither be trained nor compared with a trainer's."""
    method = quantisation(directory)
    if method is not None:
        raise InputError(
            f"{directory}: its weights are quantised ({method})",
            "use the model in float32, float16 or bfloat16; only --engine vllm can sample from quantised weights",
        )


def missing_weights(
    directory: Path, missing: Collection[str], mismatched: Collection[str], unexpected: Collection[str]
) -> InputError:
    """The error to raise where transformers did not find all weights, and would take random ones for them.

    missing, mismatched: names that the files do not have, or in another shape. unexpected: names that they have beside.
    """
    wrong = sorted({*missing, *mismatched})
    shown = ", ".join(wrong[:SHOWN_NAMES]) + (
        f" and {len(wrong) - SHOWN_NAMES} more" if len(wrong) > SHOWN_NAMES else ""
    )
    what = "lacks the weights" if missing else "has another shape than config.json says for the weights"
    return InputError(f"{directory}: {what} {shown}", _why(missing, unexpected))


def _why(missing: Collection[str], unexpected: Collection[str]) -> str:
    for prefix, advice in WRAPPERS.items():
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            return advice
    if missing and all("lm_head" in name or "embed_out" in name for name in missing):
        return "if the model shares its embedding with the output layer, set tie_word_embeddings to true in config.json"
    if unexpected:
        return f"it has others instead, such as {min(unexpected)}: its config.json belongs to another model"
    return "the files are not whole: write or download them again"
