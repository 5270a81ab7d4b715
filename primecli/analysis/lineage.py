"""What made a shard or a checkpoint: its chain of commands, the models they used, and what differs between two."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from primecli import catalog
from primecli.errors import InputError
from primecli.models.identity import is_checkpoint, read_trainer_record
from primecli.pipeline.invocation import working_directory
from primecli.shards import parquet
from primecli.shards.batches import Listings

Record = Mapping[str, Any]
"""What a provenance chain says of one command: its stage, command line, configuration, inputs, models and seed."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a shard or a checkpoint comes from.

    path: the shard or the checkpoint directory.
    chain: the records of the commands that made it, oldest first; of a checkpoint only the last.
    fingerprint: hash of a shard's content, or of a checkpoint's weights.
    step: optimizer steps of a checkpoint; None for a shard.
    alike: shards of its directory that were made in the same way, itself included.
    unlike: shards of its directory that were made in another way.
    """

    path: Path
    chain: tuple[Record, ...]
    fingerprint: str
    step: int | None = None
    alike: int = 1
    unlike: int = 0

    @property
    def record(self) -> Record:
        """The command that made it."""
        return self.chain[-1]


@dataclass(frozen=True, slots=True)
class UsedModel:
    """A model that a command used.

    role: such as policy, prm or ref.
    fingerprint: of its weights when the command ran.
    name: the directory or hub id that the command was given; None where none was recorded.
    origin: where it comes from, if it is a checkpoint that is still the same; else None.
    changed: whether the directory now holds a checkpoint with other weights.
    """

    role: str
    fingerprint: str
    name: str | None
    origin: Origin | None
    changed: bool = False


def find_origin(path: Path) -> Origin:
    """Where a shard, the first shard of a directory, or a checkpoint directory comes from.

    Raises InputError for a path that is none of these, and for one that another tool made.
    """
    if is_checkpoint(path):
        record = read_trainer_record(path)
        chain = tuple(record.get("provenance", ()))
        if not chain:
            raise InputError(f"{path}: its record does not say what made it")
        return Origin(path, chain[-1:], str(record["weights"]), int(record["step"]))
    if path.is_dir():
        shards = sorted(path.glob("*.parquet"))
        if not shards:
            raise InputError(f"{path}: neither a checkpoint of primecli nor a directory of shards")
        return _origin_of_first(shards)
    return _with_inputs(_origin_of(path))


def _origin_of(path: Path) -> Origin:
    """The origin of a shard, as its footer has it."""
    footer = parquet.read_footer(path)
    if not footer.provenance:
        raise InputError(f"{path}: another tool made it, and it does not say how")
    return Origin(path, footer.provenance, footer.content)


def _with_inputs(origin: Origin) -> Origin:
    """The same, with all inputs of commands that read a whole batch, where another shard of the directory has them."""
    chain, listings = [], Listings()
    for record in origin.chain:
        inputs = listings.inputs(origin.path, record) if record.get("batch") else None
        kept = record if inputs is None else {key: value for key, value in record.items() if key != "batch"}
        chain.append(kept if inputs is None else {**kept, "inputs": inputs})
    return replace(origin, chain=tuple(chain))


def _origin_of_first(shards: Sequence[Path]) -> Origin:
    """The origin of a directory's first shard, and how many of the others were made in the same way."""
    first, *others = (_origin_of(path) for path in shards)
    recipe = [(record.get("stage"), _settings(record)) for record in first.chain]
    alike = sum([(record.get("stage"), _settings(record)) for record in other.chain] == recipe for other in others)
    return replace(_with_inputs(first), alike=1 + alike, unlike=len(others) - alike)


def models_of(record: Record) -> list[UsedModel]:
    """The models that a command used, by role."""
    models = []
    stage = catalog.command(str(record.get("stage")))
    for role, fingerprint in (record.get("models") or {}).items():
        if stage is None or role not in stage.models or fingerprint is None:
            continue
        config = record.get("config") or {}
        option = config.get(stage.models[role])
        name = str(option) if option else None
        path = None if name is None else located(record, name)
        origin = find_origin(path) if path is not None and is_checkpoint(path) else None
        same = origin is not None and origin.fingerprint == fingerprint
        changed = origin is not None and not same
        models.append(UsedModel(role, str(fingerprint), name, origin if same else None, changed))
    return models


def input_directories(record: Record) -> list[Path]:
    """The directories that a command took its shards from."""
    return list(dict.fromkeys(located(record, entry["path"]).parent for entry in record.get("inputs") or ()))


def located(record: Record, text: str) -> Path:
    """A path of a command from where we are: a relative one starts where the command was run, if that is known."""
    path = Path(text)
    ran_in = record.get("directory")
    if ran_in is None or path.is_absolute() or ran_in == working_directory():
        return path
    there = Path(ran_in) / path
    return there if os.path.exists(there) else path


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which two chains differ.

    stage: such as verify; `verify (2)` is the second of that name in its chain.
    name: of the option, such as beta; or `stage`, where only one of the chains has that stage.
    first, second: its value in either chain.
    """

    stage: str
    name: str
    first: Any
    second: Any


def full_chain(origin: Origin) -> tuple[Record, ...]:
    """All records up to it, oldest first; of a checkpoint, those of the shards that it was trained on too."""
    if origin.step is None:
        return origin.chain
    for directory in input_directories(origin.record):
        if any(directory.glob("*.parquet")):
            return (*find_origin(directory).chain, *origin.chain)
    return origin.chain


def differences(first: Origin, second: Origin) -> Iterator[Difference]:
    """What differs in configuration, models, seed and version, stage by stage, and stages that only one has."""
    chains = tuple(_by_stage(full_chain(origin)) for origin in (first, second))
    for key in dict.fromkeys([*chains[0], *chains[1]]):
        name, repeats = key
        stage = name if repeats == 0 else f"{name} ({repeats + 1})"
        if key not in chains[0] or key not in chains[1]:
            yield Difference(stage, "stage", *("there" if key in chain else "not there" for chain in chains))
            continue
        left, right = (_settings(chain[key]) for chain in chains)
        for setting in dict.fromkeys([*left, *right]):
            if left.get(setting) != right.get(setting):
                yield Difference(stage, setting, left.get(setting), right.get(setting))


def _by_stage(chain: Iterable[Record]) -> dict[tuple[str, int], Record]:
    """The records by stage and by how many records of that stage came before."""
    records: dict[tuple[str, int], Record] = {}
    for record in chain:
        stage = str(record.get("stage"))
        records[stage, sum(key[0] == stage for key in records)] = record
    return records


def _settings(record: Record) -> dict[str, Any]:
    fingerprints = {f"model {role}": value for role, value in (record.get("models") or {}).items()}
    return {
        **(record.get("config") or {}),
        **fingerprints,
        "seed": record.get("seed"),
        "version": record.get("version"),
    }
