"""Commands as Typer takes them, made from functions whose options are declared with `primecli.options.Option`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from primecli.options import Declaration, Options, declarations


def typer_function(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The same command with the signature that Typer reads.

    function: takes either one object of options, which is built and checked before the call, or each of its options,
        and with them a typer.Context if it asks for one. It may return an exit code.
    """
    kind = options_type(function)
    declared = declarations(kind or function)

    def call(**values: Any) -> int | None:
        given = {name: _value(declared.get(name), value) for name, value in values.items()}
        if kind is None:
            return function(**given)
        options = kind(**given)
        options.check()
        return function(options)

    annotations = {one.name: _annotation(one) for one in declared.values()}
    others = {name: hint for name, hint in get_type_hints(function).items() if hint is typer.Context}
    call.__name__ = function.__name__
    call.__annotations__ = {**others, **annotations}
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint) for name, hint in others.items()]
        + [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if one.default == () else one.default,
                annotation=annotations[one.name],
            )
            for one in declared.values()
        ]
    )
    return call


def options_type(function: Callable[..., int | None]) -> type[Options] | None:
    """The class of options that a command takes as its only argument; None for one that takes them each."""
    hints = [hint for name, hint in get_type_hints(function).items() if name != "return"]
    return hints[0] if len(hints) == 1 and isinstance(hints[0], type) and issubclass(hints[0], Options) else None


def _is_list(kind: Any) -> bool:
    """Whether it is tuple[X, ...], an option that may be given several times."""
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _value(one: Declaration | None, value: Any) -> Any:
    return tuple(value or ()) if one is not None and _is_list(one.type) else value


def _annotation(one: Declaration) -> Any:
    kind = one.type
    if _is_list(kind):
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
        if one.default is not inspect.Parameter.empty:
            kind = kind | None
    if one.option.choices:
        kind = Literal[one.option.choices]
    return Annotated[kind, _typer_parameter(one)]


def _typer_parameter(one: Declaration) -> Any:
    option = one.option
    shown: bool | str = option.shown_default or (one.default is not None and one.default != ())
    if option.argument:
        return typer.Argument(metavar=option.metavar, help=option.help, show_default=shown)
    flags = option.flags or f"--{one.name.replace('_', '-')}"
    return typer.Option(
        flags,
        metavar=option.metavar,
        min=option.min,
        max=option.max,
        help=option.help,
        show_default=shown,
        callback=_callback(one),
    )


def _callback(one: Declaration) -> Callable[[Any], Any] | None:
    is_float = one.type is float or float in get_args(one.type)
    if one.option.check is None and (not is_float or get_origin(one.type) is tuple):
        return None

    def check(value: Any) -> Any:
        problem = one.problem(value)
        if problem is not None:
            raise typer.BadParameter(problem)
        return value

    return check
