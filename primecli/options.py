"""How an option is declared: once, as the annotation of a field or of a parameter.

    @dataclass(frozen=True, kw_only=True)
    class FilterOptions(Options):
        groups: Annotated[int | None, Option("Stop once this many groups have passed.", min=1)] = None

Everything else follows from that declaration: the option's form on the command line and in the configuration file
(setup/command_line.py), the typed attribute that the code reads, and, from `affects`, whether it is hashed into the
fingerprint of the result or only recorded in its provenance.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from primecli.errors import UsageError
from primecli.files import Json

Affects = Literal["result", "execution", "seed", "call"]
"""What an option changes.

result: the result, so it is part of the fingerprint, such as --beta.
execution: how the result is computed, so it is only recorded in the provenance, such as --device. The names of models
    too, because the recipe has their fingerprints instead.
seed: the result too; part of the fingerprint, but recorded under a key of its own.
call: only this call, so it is not recorded, such as --force. Also for an option that an override of `Options.recipe` or
    `Options.execution` records in another form, such as --dtype, where `auto` must first become a precision.
"""


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration of an option, apart from its name, its type and its default.

    help: its text in the help page and in the configuration file that `primecli init` writes.
    affects: what it changes; see `Affects`.
    flags: its form on the command line; None for `--` and the field's name, such as --mini-batch for mini_batch.
    metavar: the placeholder for its value in the help page, such as DIR; None for the name of its type.
    min, max: bounds of a number, inclusive.
    check: returns what is wrong with a value, or None. Without a check, a float must be finite.
    shown_default: the default as the help page shows it; None for the default itself.
    argument: whether it is a positional argument.
    choices: the values that a text may have, if no enum lists them, such as the names in a registry. With a `check`,
        which then judges the value, it may have others too, and these are only what a shell completes.
    """

    help: str
    affects: Affects = "result"
    flags: str | None = None
    metavar: str | None = None
    min: float | None = None
    max: float | None = None
    check: Callable[[Any], str | None] | None = None
    shown_default: str | None = None
    argument: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Declaration:
    """An option together with the name, type and default of its field or parameter.

    name: such as mini_batch.
    type: the annotation without the Option, such as int.
    option: the Option in the annotation.
    default: the default; `inspect.Parameter.empty` if a value is required.
    """

    name: str
    type: Any
    option: Option
    default: Any

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value that has the right type and is within the bounds; None if nothing is."""
        if self.option.check is not None and value is not None:
            return self.option.check(value)
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value} is not a finite number"
        return None


def declarations(owner: Any) -> Mapping[str, Declaration]:
    """The options that a class of options, or a function's parameters, declare: by name, in the order of the help page.

    The fields of a class come first, then those of its bases, base by base; see `_inherited`.
    """
    hints = get_type_hints(owner, include_extras=True)
    if isinstance(owner, type):
        names = [*inspect.get_annotations(owner), *_inherited(owner)]
        defaults = {name: getattr(owner, name, inspect.Parameter.empty) for name in names}
    else:
        parameters = inspect.signature(owner).parameters
        names, defaults = list(parameters), {name: parameter.default for name, parameter in parameters.items()}
    declared = {}
    for name in dict.fromkeys(names):
        if get_origin(hints[name]) is Annotated:
            kind, *notes = get_args(hints[name])
            option = next((note for note in notes if isinstance(note, Option)), None)
            if option is not None:
                declared[name] = Declaration(name, kind, option, defaults[name])
    return declared


def _inherited(owner: type) -> list[str]:
    """The fields of a class's bases: for each base those it inherits, then its own. A redeclared field comes later."""
    names: list[str] = []
    for base in owner.__bases__:
        for name in (*_inherited(base), *inspect.get_annotations(base)):
            if name in names:
                names.remove(name)
            names.append(name)
    return names


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a stage: a typed, immutable object, built by keyword."""

    def check(self) -> None:
        """Raises UsageError for options that contradict each other; the command line calls it before anything else."""

    def recipe(self) -> dict[str, Json]:
        """The options that the result depends on, as they are stored and hashed, without the seed."""
        return self._recorded("result")

    def execution(self) -> dict[str, Json]:
        """The options that change how the result is computed but not the result, as the provenance records them."""
        return self._recorded("execution")

    def recorded_seed(self) -> int | None:
        """The seed of the result; None for a stage that draws no random numbers."""
        return self._recorded("seed").get("seed")  # type: ignore[return-value]

    def _recorded(self, affects: Affects) -> dict[str, Json]:
        return {
            declaration.name: as_json(getattr(self, declaration.name))
            for declaration in declarations(type(self)).values()
            if declaration.option.affects == affects
        }


def as_json(value: Any) -> Json:
    """The value of an option as JSON stores it.

    >>> as_json((0.2, Path("a")))
    [0.2, 'a']
    """
    if isinstance(value, Enum):
        return as_json(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    return value  # type: ignore[no-any-return]


def key_values(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The pairs KEY=VALUE of an option that may be repeated, each value read as JSON if it is JSON, else as text.

    >>> key_values("--engine-arg", ["enforce_eager=true", "name=a=b"])
    {'enforce_eager': True, 'name': 'a=b'}

    Raises UsageError for one without a key or without `=`, or whose value is no valid Unicode.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"{option} {pair}: write it as KEY=VALUE")
        try:
            values[key] = json.loads(text)
            json.dumps(values[key], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{option} {pair}: holds half of a character") from None
        except (ValueError, RecursionError):
            values[key] = text
    return values


def positive(value: float) -> str | None:
    """An `Option.check`: says what is wrong unless the number is positive and finite."""
    return None if 0 < value < math.inf else f"{value:g} is not a positive number"


Seed = Annotated[int, Option("Seed of all random numbers.", "seed", min=0)]
Quiet = Annotated[bool, Option("Show only warnings and errors.", "call")]
Force = Annotated[bool, Option("Redo the work and overwrite existing output.", "call")]
Partial = Annotated[
    bool, Option("Use incomplete input: from a stage that failed, was killed or is still running.", "call")
]
Shards = Annotated[
    tuple[str, ...],
    Option(
        "Shards, directories of shards, or globs. With none, or with -, paths are read from stdin, one per line.",
        "call",
        metavar="[SHARDS]...",
        argument=True,
    ),
]
Out = Annotated[
    Path | None,
    Option("Output directory.  [default: next to the input directory, named after the stage]", "call", metavar="DIR"),
]
StepSeparator = Annotated[
    str, Option("Text between two steps; \\n stands for a newline, \\t for a tab.", shown_default="\\n")
]


def separator(text: str) -> str:
    """The text between two steps, from the value of --step-separator. Raises UsageError for an empty one."""
    if not text:
        raise UsageError("--step-separator is empty", "give the text between two steps")
    return text.replace("\\n", "\n").replace("\\t", "\t")
