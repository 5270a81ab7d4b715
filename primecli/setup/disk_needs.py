"""How much disk the loop of `primecli init` takes with a model, from the headers of the model's files."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Bytes of a number, by its dtype as safetensors calls it."""
MOMENTS = 8  # bytes per parameter: AdamW's two moments
MASTER = 4  # bytes per parameter: the float32 weights, where the model itself is not float32
PAIR = 2  # checkpoints of an iteration: the policy and the PRM
PAIRS_AT_ONCE = 3  # the two newest, and the one that is being written


@dataclass(frozen=True, slots=True)
class DiskNeeds:
    """What training all parameters of a model takes.

    parameters: how many the model has, such as 7_615_616_512. dtype_bytes: of a number in its files, such as 2.
    """

    parameters: int
    dtype_bytes: int

    def bytes_per_parameter(self) -> int:
        """Bytes of a checkpoint for each parameter.

        >>> DiskNeeds(1, 2).bytes_per_parameter(), DiskNeeds(1, 4).bytes_per_parameter()
        (14, 12)
        """
        return self.dtype_bytes + MOMENTS + (0 if self.dtype_bytes == FLOATS["F32"] else MASTER)

    def model(self) -> int:
        """Bytes of the model alone, which is what stays of an evaluated policy."""
        return self.parameters * self.dtype_bytes

    def checkpoint(self) -> int:
        """Bytes of a checkpoint to resume from."""
        return self.parameters * self.bytes_per_parameter()

    def iteration(self) -> int:
        """Bytes that an iteration writes: a policy and a PRM. Its shards are small beside them."""
        return PAIR * self.checkpoint()

    def at_once(self) -> int:
        """Bytes of the checkpoints that are there at the same time, where older ones are removed."""
        return PAIRS_AT_ONCE * self.iteration()

    def in_words(self) -> str:
        """The needs as one line."""
        return (
            f"a checkpoint takes {size(self.checkpoint())} ({self.bytes_per_parameter()} bytes for each of "
            f"{self.parameters:,} parameters), and an iteration writes a policy and a PRM, {size(self.iteration())}; "
            f"the loop needs {size(self.at_once())} with KEEP=last, {size(self.model())} more for each evaluation with "
            f"KEEP=evaluated, and {size(self.iteration())} for each iteration with KEEP=all"
        )


def disk_needs(model: str) -> DiskNeeds | None:
    """What training this model takes; None for one that is not on this machine, or whose files cannot be read.

    model: a directory or hub id. Nothing is downloaded.
    """
    from safetensors import SafetensorError, safe_open

    directory = _local_directory(model)
    files = [] if directory is None else sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    parameters, dtype_bytes = 0, 0
    try:
        for path in files:
            with safe_open(path, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    tensor = tensors.get_slice(name)
                    if tensor.get_dtype() in FLOATS:
                        parameters += math.prod(tensor.get_shape())
                        dtype_bytes = dtype_bytes or FLOATS[tensor.get_dtype()]
    except (OSError, SafetensorError):
        return None
    return DiskNeeds(parameters, dtype_bytes) if parameters else None


def _local_directory(model: str) -> Path | None:
    """The directory of a model that is on this machine, in the hub's cache too."""
    if Path(model).is_dir():
        return Path(model)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def free_bytes(directory: Path) -> int:
    """Free space where a directory is, or will be made."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def size(count: float) -> str:
    """A number of bytes as disks are sold: in powers of 1000.

    >>> size(106_618_631_168), size(2_300_000), size(5_000_000_000_000)
    ('107 GB', '2.3 MB', '5 TB')
    """
    unit = next((unit for unit, power in _UNITS.items() if count >= power), "kB")
    return f"{count / _UNITS[unit]:.3g} {unit}"


_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}
