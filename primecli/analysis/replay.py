"""A shell script that makes a shard or a checkpoint again, out of a provenance chain that anybody may have written.

The chain is somebody's word, and the script goes to a shell. So nothing of the chain is copied into it as it is: a
command has to be a stage of primecli, its options have to be that stage's, with values of their types, and every word
is quoted. What does not pass is a comment, and so is a pipeline in which an option says what code to run.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from primecli import catalog
from primecli.analysis.lineage import Origin, Record, find_origin, input_directories, models_of
from primecli.errors import InputError
from primecli.pipeline.invocation import without_config, working_directory
from primecli.printable import one_line
from primecli.verifiers import VERIFIERS

NOT_REPLAYED = {"--force": "it would replace what is there"}
"""Options that are left out, with the reason."""

FindOptions = Callable[[str], Mapping[str, Any]]
"""The options of a stage as Typer has them, by their long name without the leading dashes."""


@dataclass(slots=True)
class ReplayStep:
    """One command of a replay.

    command: its words, without its input shards; empty where the record has no command that can be replayed.
    output: the directory that it writes.
    inputs: the directories that it takes its shards from.
    is_update: whether it writes a checkpoint.
    left_out: one line for each part of the recorded command that is not in `command`.
    runs: one line for each option that says what code is run, or where data is sent.
    """

    command: tuple[str, ...]
    output: Path
    inputs: tuple[Path, ...]
    is_update: bool
    left_out: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replay:
    """A script, and how many of its pipelines are comments, for the user to look at first."""

    script: str
    disabled: int


def replay_script(origin: Origin, find_options: FindOptions) -> Replay:
    """A shell script that makes a shard or checkpoint again in the same places, after the checkpoints that it needs.

    Consecutive stages are piped into each other. Raises InputError where the shards that a checkpoint was trained on
    are gone, since nothing else says how they were made.
    """
    steps: dict[Path, ReplayStep] = {}
    _collect(origin, steps, set(), find_options)
    pipelines: list[list[ReplayStep]] = []
    for step in steps.values():
        before = pipelines[-1][-1] if pipelines else None
        if before is not None and not before.is_update and step.inputs == (before.output,):
            pipelines[-1].append(step)
        else:
            pipelines.append([step])
    texts = [_pipeline(pipeline) for pipeline in pipelines]
    disabled = sum(not _is_live(pipeline) for pipeline in pipelines)
    head = ["set -euo pipefail", *(f"# run in {one_line(name)}" for name in _directories(origin))]
    return Replay("\n".join([*head, *(line for text in texts for line in text)]), disabled)


def _directories(origin: Origin) -> list[str]:
    """Where the commands were run, if that is not here: their relative paths start there."""
    names = {str(record["directory"]) for record in origin.chain if record.get("directory")}
    return sorted(names - {working_directory() or ""})


def _is_live(pipeline: Sequence[ReplayStep]) -> bool:
    return all(step.command and not step.runs for step in pipeline)


def _pipeline(pipeline: Sequence[ReplayStep]) -> Iterator[str]:
    """The lines of a pipeline, its comments first: a comment among continued lines would end them."""
    for step in pipeline:
        yield from (f"# left out: {text}" for text in step.left_out)
        yield from (f"# look at this before you run it: {text}" for text in step.runs)
    lines: list[str] = []
    for step in pipeline:
        inputs = () if lines else map(_as_argument, step.inputs)
        words = " ".join(map(quoted, (*step.command, *inputs))) if step.command else "…"
        lines.append(f"{'  | ' if lines else ''}{words}")
    ends = [*(" \\" for _ in lines[1:]), " > /dev/null"]
    mark = "" if _is_live(pipeline) else "# "
    yield from (f"{mark}{line}{end}" for line, end in zip(lines, ends, strict=True))


def quoted(word: str) -> str:
    """A word for a shell, on one line and without a character that could steer a terminal.

    >>> quoted("a b"), quoted("a\\nb\\u202e")
    ("'a b'", "$'a\\\\nb\\\\xe2\\\\x80\\\\xae'")
    """
    if word.isprintable():
        return shlex.quote(word)
    escapes = {"\n": "\\n", "\t": "\\t", "\\": "\\\\", "'": "\\'"}
    letters = (
        escapes.get(letter)
        or (letter if letter.isprintable() else "".join(f"\\x{byte:02x}" for byte in letter.encode()))
        for letter in word
    )
    return f"$'{''.join(letters)}'"


def _as_argument(path: Path) -> str:
    """A path as a word that is no option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _collect(origin: Origin, steps: dict[Path, ReplayStep], seen: set[Path], find_options: FindOptions) -> None:
    """Adds the steps that lead to it, each after all that it needs. seen: what is being added or has been."""
    if origin.path in seen:  # a forged chain may lead back to itself
        return
    seen.add(origin.path)
    if origin.step is None:
        for record in origin.chain:
            if batch := record.get("batch"):
                raise InputError(
                    f"{origin.path}: its inputs are listed in {one_line(batch['listed_in'])}, which is not beside it",
                    "copy that shard to the same directory, too",
                )
        outputs = [_only(input_directories(record), origin) for record in origin.chain[1:]]
        for record, output in zip(origin.chain, [*outputs, origin.path.parent], strict=True):
            _add(record, output, steps, seen, find_options)
        return
    for directory in input_directories(origin.record):
        if directory not in steps:
            try:
                source = find_origin(directory)
            except InputError as error:
                raise InputError(
                    f"{directory}: the shards that {origin.path} was trained on are gone", "keep them to replay it"
                ) from error
            _collect(source, steps, seen, find_options)
    _add(origin.record, origin.path, steps, seen, find_options)


def _only(directories: Sequence[Path], origin: Origin) -> Path:
    if len(directories) != 1:
        raise InputError(
            f"{origin.path}: a stage before it read {len(directories)} directories; a replay can follow only one"
        )
    return directories[0]


def _add(
    record: Record, output: Path, steps: dict[Path, ReplayStep], seen: set[Path], find_options: FindOptions
) -> None:
    if output in steps:
        return
    for model in models_of(record):
        if model.origin is not None:
            _collect(model.origin, steps, seen, find_options)
    inputs = tuple(input_directories(record))
    step = ReplayStep((), output, inputs, str(record.get("stage")).startswith("update-"))
    try:
        _fill(step, record, find_options)
    except _NoStage as error:
        step.left_out = [f"{error}: {one_line(str(record.get('command')))}"]
    steps[output] = step


class _NoStage(Exception):
    """A recorded command is none that could have made a shard or checkpoint."""


def _fill(step: ReplayStep, record: Record, find_options: FindOptions) -> None:
    """Sets the step's command to what can be replayed of the recorded one; notes the rest."""
    try:
        words = without_config(shlex.split(str(record.get("command"))))[1:]
    except ValueError:
        raise _NoStage("a command that is not quoted well") from None
    words = [word for word in words if word != "--debug"]
    stage = catalog.command(words[0]) if words else None
    if stage is None or stage.writes is None:
        raise _NoStage("a command that is no stage of primecli")
    if stage.name != record.get("stage"):
        raise _NoStage(f"a command of another stage than {one_line(str(record.get('stage')))}, which is recorded")
    command = ["primecli", stage.name]
    for option in _options([*words[1:], *record.get("elsewhere", ())], find_options(stage.name)):
        text = " ".join(map(quoted, option.words))
        problem = option.problem or NOT_REPLAYED.get(option.name)
        if problem:
            step.left_out.append(f"{stage.name} {text} ({one_line(problem)})")
            continue
        command += option.words
        warning = _what_it_runs(option.name, option.values)
        if warning:
            step.runs.append(f"{stage.name} {text} {warning}")
    step.command = tuple(command)


@dataclass(frozen=True, slots=True)
class _Given:
    """An option as it was given.

    name: with its dashes. words: as typed. values: those among the words. problem: why the stage would not take it.
    """

    name: str
    words: tuple[str, ...]
    values: tuple[str, ...] = ()
    problem: str | None = None


def _options(words: Sequence[str], known: Mapping[str, Any]) -> Iterator[_Given]:
    """The options among the words of a command; other words are its input shards, which the record names."""
    by_flag = {flag: option for option in known.values() for flag in (*option.opts, *option.secondary_opts)}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return
        if not word.startswith("-") or word == "-":
            continue
        name, equals, value = word.partition("=")
        option = by_flag.get(name)
        if option is None:
            yield _Given(name, (word,), problem="there is no such option")
            continue
        if option.is_flag:
            yield _Given(name, (word,), problem="it takes no value" if equals else None)
            continue
        given = [value] if equals else []
        given += [rest.pop(0) for _ in range(min(option.nargs - len(given), len(rest)))]
        typed = (word, *given[1:]) if equals else (word, *given)
        yield _Given(name, typed, tuple(given), _problem(option, given))


def _problem(option: Any, values: Sequence[str]) -> str | None:
    """Why an option of Typer does not take these values; None if it does."""
    if len(values) < option.nargs:
        return "its value is missing"
    try:
        option.type.convert(values[0] if option.nargs == 1 else tuple(values), None, None)
    except typer.BadParameter as error:
        return str(error.message)
    return None


def _what_it_runs(name: str, values: Sequence[str]) -> str | None:
    """What an option of a stage makes run, or where it sends data, so that a user has to agree; None if neither."""
    if name == "--verifier" and not all(value.rpartition("=")[2] in VERIFIERS for value in values):
        return "imports and runs that code"
    if name == "--sandbox" and not {*values} <= {"auto", "bwrap"}:
        return "runs the programs in responses outside of the sandbox"
    if name == "--engine-arg":
        return "can make the engine load code"
    return "sends prompts there" if name == "--url" else None
