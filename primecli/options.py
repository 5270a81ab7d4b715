"""How an option is declared: once, as the annotation of a field or of a parameter.

    @dataclass(frozen=True, kw_only=True)
    class FilterOptions(Options):
        groups: Annotated[int | None, Option("Stop once this many groups have passed.", min=1)] = None

Everything else follows from that declaration: its form on the command line and in the configuration file
(setup/command_line.py), the typed attribute that the code reads, and, with `affects`, whether it is hashed into the
fingerprint of the result or only recorded in its provenance.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from primecli.errors import UsageError
from primecli.files import Json

Affects = Literal["result", "execution", "seed", "call"]


@dataclass(frozen=True, slots=True)
class Option:
    """What there is to say about an option besides its name, its type and its default.

    help: its text in the help page and in the starter's configuration file.
    affects: `result`: another value gives another result, so it is part of the fingerprint; `execution`: it changes how
        the result is computed, such as a device, and is recorded in the provenance alone; `seed`: part of the
        fingerprint, but recorded under a key of its own; `call`: it is about this call, such as --force.
    flags: its form on the command line; by default `--` and the field's name, as in `--mini-batch` for mini_batch.
    metavar: what stands for its value in the help page, such as DIR.
    min, max: bounds of a number, both allowed.
    check: says what is wrong with a value, None where nothing is; without one, a float has to be finite.
    shown_default: the default as the help page shows it, where that is not the default itself.
    argument: it is given without a name: a positional argument.
    choices: the values that a text may have, where no enum lists them: names of a registry.
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
    """An option with what Python knows of it.

    name: of the field or parameter, such as mini_batch.
    type: its annotation without the Option, such as int.
    option: the Option that annotates it.
    default: its default; `inspect.Parameter.empty` where a value is required.
    """

    name: str
    type: Any
    option: Option
    default: Any

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of the right type and within the bounds; None where nothing is."""
        if self.option.check is not None and value is not None:
            return self.option.check(value)
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value} is not a finite number"
        return None


def declarations(owner: Any) -> Mapping[str, Declaration]:
    """The options of a class of options, or of a function's parameters, by name, in the order of the help page.

    A class's own fields come first, then those of its bases, base by base; see `_inherited`.
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
    """The fields of a class's bases, in their order; of a base's own bases first, unless it declares a field anew."""
    names: list[str] = []
    for base in owner.__bases__:
        for name in (*_inherited(base), *inspect.get_annotations(base)):
            if name in names:
                names.remove(name)
            names.append(name)
    return names


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a stage: one typed, immutable object, built by keyword."""

    def check(self) -> None:
        """Raises UsageError for options that do not fit together; the command line calls it before anything else."""

    def recipe(self) -> dict[str, Json]:
        """The options that the result depends on, as they are stored and hashed. The seed is stored on its own."""
        return self._recorded("result")

    def execution(self) -> dict[str, Json]:
        """The options that change how a result is computed, and not the result, as the provenance records them."""
        return self._recorded("execution")

    def recorded_seed(self) -> int | None:
        """The seed of the result; None for a stage that draws nothing."""
        return self._recorded("seed").get("seed")  # type: ignore[return-value]

    def _recorded(self, affects: Affects) -> dict[str, Json]:
        declared = declarations(type(self)).values()
        return {one.name: as_json(getattr(self, one.name)) for one in declared if one.option.affects == affects}


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


def positive(value: float) -> str | None:
    """Refuses 0, numbers below it, nan and inf."""
    return None if 0 < value < math.inf else f"{value:g} is not a positive number"


Seed = Annotated[int, Option("Seed of all randomness.", "seed", min=0)]
Quiet = Annotated[bool, Option("Write errors only to stderr.", "call")]
Force = Annotated[bool, Option("Make again and overwrite what is there.", "call")]
Partial = Annotated[bool, Option("Take what is there of a run that failed, was killed or still runs.", "call")]
Shards = Annotated[
    tuple[str, ...],
    Option(
        "Shards, directories of shards or globs. With none, or with -, paths are read from stdin, one a line.",
        "call",
        metavar="[SHARDS]...",
        argument=True,
    ),
]
Out = Annotated[
    Path | None,
    Option("Output directory.  [default: beside the input directory, named after the stage]", "call", metavar="DIR"),
]
StepSeparator = Annotated[str, Option("Text between two steps; \\n and \\t are read as such.", shown_default="\\n")]


def separator(text: str) -> str:
    """The text that --step-separator means. Raises UsageError for an empty one."""
    if not text:
        raise UsageError("--step-separator: give the text that stands between two steps")
    return text.replace("\\n", "\n").replace("\\t", "\t")
