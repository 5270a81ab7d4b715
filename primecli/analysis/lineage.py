"""What made a shard or a checkpoint: its chain of commands, the models in it, and the commands to make it again."""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from primecli import catalog
from primecli.errors import InputError
from primecli.models.identity import TRAINER_DIRECTORY, TRAINER_FILE, read_trainer_record
from primecli.pipeline.invocation import without_config
from primecli.shards import parquet

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """A shard or a checkpoint and the records of what made it, oldest first.

    fingerprint: content of a shard, weights of a checkpoint. step: optimizer steps of a checkpoint. alike, unlike: of a
    directory, the shards that were made in the same way as the first, which is this one, and the others.
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
class Model:
    """A model that a command used. made: its own origin, where it is a checkpoint that is still there. changed: whether
    there is now another checkpoint in its place."""

    role: str
    fingerprint: str
    name: str | None
    made: Made | None
    changed: bool = False


def look_up(path: Path) -> Made:
    """What is known of a shard, of the first shard of a directory, or of a checkpoint directory.

    Raises InputError where it is neither, or where another tool made it.
    """
    if is_checkpoint(path):
        record = read_trainer_record(path)
        chain = tuple(record.get("provenance", ()))
        if not chain:
            raise InputError(f"{path}: its record does not say what made it")
        return Made(path, chain[-1:], str(record["weights"]), int(record["step"]))
    if path.is_dir():
        found = sorted(path.glob("*.parquet"))
        if not found:
            raise InputError(f"{path}: neither a checkpoint of primecli nor a directory of shards")
        return _first_of(found)
    footer = parquet.read_footer(path)
    if not footer.provenance:
        raise InputError(f"{path}: another tool made it, and it does not say how")
    return Made(path, footer.provenance, footer.content)


def _first_of(found: Sequence[Path]) -> Made:
    """The first of a directory's shards, with how many of the others were made in the same way."""
    first, *others = (look_up(path) for path in found)
    recipe = [(record.get("stage"), _settings(record)) for record in first.chain]
    alike = sum([(record.get("stage"), _settings(record)) for record in other.chain] == recipe for other in others)
    return replace(first, alike=1 + alike, unlike=len(others) - alike)


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint that an update wrote."""
    return (path / TRAINER_DIRECTORY / TRAINER_FILE).exists()


def models_of(record: Record) -> list[Model]:
    """The models that a command used, by role."""
    found = []
    stage = catalog.command(str(record.get("stage")))
    for role, fingerprint in (record.get("models") or {}).items():
        if stage is None or role not in stage.models or fingerprint is None:
            continue
        config = record.get("config") or {}
        option = config.get(stage.models[role])
        name = str(option) if option else None
        there = look_up(Path(name)) if name is not None and is_checkpoint(Path(name)) else None
        same = there is not None and there.fingerprint == fingerprint
        found.append(Model(role, str(fingerprint), name, there if same else None, there is not None and not same))
    return found


def input_directories(record: Record) -> list[Path]:
    """The directories that a command took its shards from."""
    return list(dict.fromkeys(Path(entry["path"]).parent for entry in record.get("inputs") or ()))


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs between two chains: of a stage, by name, in one and in the other."""

    stage: str
    name: str
    first: Any
    second: Any


def full_chain(made: Made) -> tuple[Record, ...]:
    """The records of everything before it too: a checkpoint's begins with that of the shards it was trained on."""
    if made.step is None:
        return made.chain
    for directory in input_directories(made.record):
        if any(directory.glob("*.parquet")):
            return (*look_up(directory).chain, *made.chain)
    return made.chain


def differences(first: Made, second: Made) -> Iterator[Difference]:
    """What differs in configuration, models, seed and version, stage by stage; a stage that one lacks is one."""
    ours, theirs = (_by_stage(full_chain(made)) for made in (first, second))
    for key in dict.fromkeys([*ours, *theirs]):
        stage = key[0] if key[1] == 0 else f"{key[0]} ({key[1] + 1})"
        if key not in ours or key not in theirs:
            yield Difference(stage, "stage", *("there" if key in side else "not there" for side in (ours, theirs)))
            continue
        mine, other = _settings(ours[key]), _settings(theirs[key])
        for name in dict.fromkeys([*mine, *other]):
            if mine.get(name) != other.get(name):
                yield Difference(stage, name, mine.get(name), other.get(name))


def _by_stage(chain: Iterable[Record]) -> dict[tuple[str, int], Record]:
    found: dict[tuple[str, int], Record] = {}
    for record in chain:
        stage = str(record.get("stage"))
        found[stage, sum(key[0] == stage for key in found)] = record
    return found


def _settings(record: Record) -> dict[str, Any]:
    fingerprints = {f"model {role}": value for role, value in (record.get("models") or {}).items()}
    return {
        **(record.get("config") or {}),
        **fingerprints,
        "seed": record.get("seed"),
        "version": record.get("version"),
    }


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a replay. makes: its output; reads: the directories of its shards."""

    command: tuple[str, ...]
    makes: Path
    reads: tuple[Path, ...]
    is_update: bool


def replay(made: Made) -> str:
    """A shell script that makes it again in the same places, checkpoints that it needs first.

    Stages that follow each other are a pipeline. Raises InputError where shards that a checkpoint was trained on are
    gone, so that nothing says how they were made.
    """
    steps: dict[Path, Step] = {}
    _collect(made, steps)
    lines: list[str] = []
    before: Step | None = None
    for step in steps.values():
        piped = before is not None and not before.is_update and step.reads == (before.makes,)
        words = shlex.join(step.command if piped else (*step.command, *map(str, step.reads)))
        if piped:
            lines[-1] += " \\"
            lines.append(f"  | {words}")
        else:
            lines.append(words)
        before = step
    ends = [*(number - 1 for number, line in enumerate(lines) if number and not line.startswith("  |")), len(lines) - 1]
    for number in ends:
        lines[number] += " > /dev/null"
    return "\n".join(["set -euo pipefail", *lines])


def _collect(made: Made, steps: dict[Path, Step]) -> None:
    """Adds the steps that lead to it, each after all that it needs."""
    if made.step is None:
        outputs = [*(_only(input_directories(record), made) for record in made.chain[1:]), made.path.parent]
        for record, output in zip(made.chain, outputs, strict=True):
            _add(record, output, steps)
        return
    if made.path in steps:
        return
    for directory in input_directories(made.record):
        if directory not in steps:
            try:
                source = look_up(directory)
            except InputError as error:
                raise InputError(
                    f"{directory}: the shards that {made.path} was trained on are gone", "keep them to replay it"
                ) from error
            _collect(source, steps)
    _add(made.record, made.path, steps)


def _only(directories: Sequence[Path], made: Made) -> Path:
    if len(directories) != 1:
        raise InputError(
            f"{made.path}: a stage before it read {len(directories)} directories; one is needed to replay it"
        )
    return directories[0]


def _add(record: Record, output: Path, steps: dict[Path, Step]) -> None:
    if output in steps:
        return
    for model in models_of(record):
        if model.made is not None:
            _collect(model.made, steps)
    reads = tuple(input_directories(record))
    stage = str(record.get("stage"))
    steps[output] = Step(tuple(_options_only(record)), output, reads, is_update=stage.startswith("update-"))


def _options_only(record: Record) -> list[str]:
    """The words of a command without its input shards, with the options that it took from elsewhere written out."""
    inputs = [os.path.normpath(entry["path"]) for entry in record.get("inputs") or ()]
    named = {*inputs, *(os.path.dirname(path) for path in inputs)}
    words = without_config(shlex.split(str(record["command"])))

    def is_input(word: str) -> bool:
        path = os.path.normpath(word)
        return word == "-" or path in named or ("*" in word and any(fnmatch.fnmatch(name, path) for name in named))

    return [*words[:2], *(word for word in words[2:] if not is_input(word)), *record.get("elsewhere", ())]
