"""Options are declared once: what follows from a declaration, and what is recorded."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest

from primecli.errors import UsageError
from primecli.options import Option, Options, declarations, positive, separator


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True, kw_only=True)
class Base(Options):
    seed: Annotated[int, Option("Seed.", "seed")] = 0
    threads: Annotated[int | None, Option("Threads.", "execution")] = None


@dataclass(frozen=True, kw_only=True)
class Other(Options):
    quiet: Annotated[bool, Option("Less.", "call")] = False


@dataclass(frozen=True, kw_only=True)
class Child(Other, Base):
    model: Annotated[Path, Option("The model.")]
    colours: Annotated[tuple[Colour, ...], Option("Colours.")] = (Colour.red,)
    rate: Annotated[float, Option("Rate.")] = 0.5
    threads: Annotated[int | None, Option("Threads.", "execution")] = 1
    helper: int = 3  # not an option, because it has no Option


def test_own_fields_come_first_then_those_of_the_bases_in_order() -> None:
    assert list(declarations(Child)) == ["model", "colours", "rate", "threads", "quiet", "seed"]
    assert list(declarations(Base)) == ["seed", "threads"]


def test_a_declaration_has_the_type_and_the_default() -> None:
    declared = declarations(Child)
    assert (declared["model"].type, declared["model"].default) == (Path, inspect.Parameter.empty)
    assert (declared["threads"].type, declared["threads"].default) == (int | None, 1)
    assert declared["rate"].option.help == "Rate."


def test_parameters_of_a_function_are_declared_likewise() -> None:
    def command(path: Path, limit: Annotated[int, Option("Limit.", min=1)] = 2) -> None: ...

    (declared,) = declarations(command).values()
    assert (declared.name, declared.type, declared.default, declared.option.min) == ("limit", int, 2, 1)


def test_what_is_recorded_where() -> None:
    options = Child(model=Path("a"), colours=(Colour.blue, Colour.red), seed=7, quiet=True)
    assert options.recipe() == {"model": "a", "colours": ["blue", "red"], "rate": 0.5}
    assert options.execution() == {"threads": 1}
    assert options.recorded_seed() == 7
    assert Other().recorded_seed() is None


@pytest.mark.parametrize(
    ("value", "problem"), [(float("nan"), "nan is not a finite number"), (float("inf"), "inf is not a finite number")]
)
def test_floats_must_be_finite(value: float, problem: str) -> None:
    assert declarations(Child)["rate"].problem(value) == problem
    assert declarations(Child)["rate"].problem(0.1) is None


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_positive_refuses_everything_else(value: float) -> None:
    assert positive(value) == f"{value:g} is not a positive number"
    assert positive(1e-300) is None


def test_separators_may_have_escapes() -> None:
    assert separator("\\n\\t;") == "\n\t;"
    with pytest.raises(UsageError, match="--step-separator"):
        separator("")
