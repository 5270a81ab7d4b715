"""Commands made from declared options: the same names, types, bounds and defaults on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from primecli.errors import UsageError
from primecli.options import Option, Options, positive
from primecli.setup.command_line import typer_function

calls: list[Any] = []


@dataclass(frozen=True, kw_only=True)
class Sample(Options):
    paths: Annotated[tuple[str, ...], Option("Paths.", "call", metavar="[PATHS]...", argument=True)] = ()
    model: Annotated[Path, Option("The model.", metavar="DIR")]
    rate: Annotated[float, Option("The rate.", min=0.0)] = 0.5
    scale: Annotated[float | None, Option("The scale.", check=positive)] = None
    bounds: Annotated[tuple[float, float], Option("The bounds.")] = (0.0, 1.0)
    kind: Annotated[str, Option("The kind.", choices=("a", "b-c"))] = "a"
    clip: Annotated[bool, Option("Clip.", flags="--clip/--no-clip")] = True
    url: Annotated[tuple[str, ...], Option("Where.")] = ()
    force: Annotated[bool, Option("Overwrite.")] = False

    def check(self) -> None:
        if self.rate == 0.25:
            raise UsageError("a quarter is refused")


def command(options: Sample) -> None:
    """Does something.

    Example: x
    """
    calls.append(options)


def with_context(context: typer.Context, limit: Annotated[int, Option("Limit.", min=1)] = 2) -> int:
    calls.append((context.info_name, limit))
    return 3


@pytest.fixture
def run() -> Any:
    calls.clear()
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command("sample")(typer_function(command))
    app.command("context")(typer_function(with_context))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_values_arrive_in_one_typed_object(run: Any) -> None:
    done = run(
        *("sample", "x", "y", "--model", "m", "--rate", "0.75", "--scale", "2", "--bounds", "0.1", "0.9"),
        *("--kind", "b-c", "--no-clip", "--url", "u", "--url", "v", "--force"),
    )
    assert done.exit_code == 0, done.output
    assert calls == [
        Sample(
            paths=("x", "y"),
            model=Path("m"),
            rate=0.75,
            scale=2.0,
            bounds=(0.1, 0.9),
            kind="b-c",
            clip=False,
            url=("u", "v"),
            force=True,
        )
    ]


def test_defaults_are_those_of_the_declaration(run: Any) -> None:
    assert run("sample", "--model", "m").exit_code == 0
    assert calls == [Sample(model=Path("m"))]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing option '--model'"),
        (["--model", "m", "--rate", "-1"], "'--rate'"),
        (["--model", "m", "--rate", "nan"], "nan is not a finite number"),
        (["--model", "m", "--scale", "0"], "0 is not a positive number"),
        (["--model", "m", "--kind", "c"], "'c' is not one of 'a', 'b-c'"),
    ],
)
def test_what_the_declaration_refuses_is_refused_before_the_call(run: Any, arguments: list[str], said: str) -> None:
    done = run("sample", *arguments)
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert not calls


def test_options_are_checked_together_before_the_call(run: Any) -> None:
    assert isinstance(run("sample", "--model", "m", "--rate", "0.25").exception, UsageError)
    assert not calls


def test_the_help_page_shows_each_default_once(run: Any) -> None:
    page = " ".join(run("sample", "--help").output.split())
    assert "--rate <float range> The rate. [default: 0.5; x>=0.0]" in page or "[default: 0.5; x>=0.0]" in page
    assert "[a|b-c]" in page or "<a|b-c>" in page
    assert "--force Overwrite. --help" in page  # a flag shows no default
    assert "[PATHS]... Paths." in page


def test_a_command_may_take_the_context_and_return_an_exit_code(run: Any) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(typer_function(with_context))
    assert typer.main.get_command(app)(args=["--limit", "5"], standalone_mode=False, prog_name="p") == 3
    assert calls == [("p", 5)]
