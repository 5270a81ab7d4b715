"""Makes the functions that Typer needs from commands whose options are declared with `primecli.options.Option`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from primecli.options import Declaration, Option, Options, declarations


def typer_function(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The same command with a signature that Typer understands.

    function: takes either a single object of options, which is built and checked before the call, or each option as a
        parameter, and a typer.Context if it has a parameter of that type. It may return an exit code.
    """
    options_class = options_type(function)
    declared = declarations(options_class or function)

    def call(**values: Any) -> int | None:
        arguments = {name: _value(declared.get(name), value) for name, value in values.items()}
        if options_class is None:
            return function(**arguments)
        options = options_class(**arguments)
        options.check()
        return function(options)

    annotations = {name: _annotation(declaration) for name, declaration in declared.items()}
    contexts = {name: hint for name, hint in get_type_hints(function).items() if hint is typer.Context}
    call.__name__ = function.__name__
    call.__annotations__ = {**contexts, **annotations}
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint) for name, hint in contexts.items()]
        + [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if declaration.default == () else declaration.default,
                annotation=annotations[name],
            )
            for name, declaration in declared.items()
        ]
    )
    return call


def options_type(function: Callable[..., int | None]) -> type[Options] | None:
    """The class of options that a command takes as its only argument; None if each option is a parameter."""
    hints = [hint for name, hint in get_type_hints(function).items() if name != "return"]
    return hints[0] if len(hints) == 1 and isinstance(hints[0], type) and issubclass(hints[0], Options) else None


def _is_repeatable(annotation: Any) -> bool:
    """Whether it is tuple[X, ...], the annotation of an option that may be repeated."""
    return get_origin(annotation) is tuple and get_args(annotation)[1:] == (...,)


def _value(declaration: Declaration | None, value: Any) -> Any:
    """The value as the function takes it, from the one that Typer gives: a tuple for a list or None."""
    return tuple(value or ()) if declaration is not None and _is_repeatable(declaration.type) else value


def _annotation(declaration: Declaration) -> Any:
    """The annotation from which Typer makes the parameter."""
    typer_type = declaration.type
    if _is_repeatable(typer_type):
        typer_type = list[get_args(typer_type)[0]]  # type: ignore[misc]
        if declaration.default is not inspect.Parameter.empty:
            typer_type = typer_type | None
    if declaration.option.choices and declaration.option.check is None:
        typer_type = Literal[declaration.option.choices]
    return Annotated[typer_type, _typer_parameter(declaration)]


def _typer_parameter(declaration: Declaration) -> Any:
    option, default = declaration.option, declaration.default
    shown: bool | str = option.shown_default or (default is not None and default != ())
    if option.argument:
        return typer.Argument(metavar=option.metavar, help=option.help, show_default=shown)
    return typer.Option(
        option.flags or f"--{declaration.name.replace('_', '-')}",
        metavar=option.metavar,
        min=option.min,
        max=option.max,
        help=option.help,
        show_default=shown,
        callback=_callback(declaration),
        autocompletion=_completion(option) if option.choices and option.check is not None else None,
    )


def _completion(option: Option) -> Callable[[str], list[str]]:
    """What a shell completes where the choices are not all that a value may be."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in option.choices if choice.startswith(incomplete)]

    return complete


def _callback(declaration: Declaration) -> Callable[[Any], Any] | None:
    """What checks a value once Typer has converted it; None if there is nothing to check."""
    annotation = declaration.type
    is_float = annotation is float or float in get_args(annotation)
    if declaration.option.check is None and (not is_float or get_origin(annotation) is tuple):
        return None

    def check(value: Any) -> Any:
        problem = declaration.problem(value)
        if problem is not None:
            raise typer.BadParameter(problem)
        return value

    return check
