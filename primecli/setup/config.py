"""Options from a TOML file and from the environment, for every command in this one place.

An option is what the command line says; else the variable PRIMECLI_<COMMAND>_<OPTION>, else, for SHARED options,
PRIMECLI_<OPTION>; else the file's section of the command, else, for SHARED ones, the file's keys before the first
section; else its default:

    seed = 1                     # SHARED options may stand before the first section

    [filter]
    accuracy = [0.2, 0.8]

    [update-policy]
    lr = 5e-7
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from primecli.errors import UsageError
from primecli.pipeline import invocation

PREFIX = "PRIMECLI"
SHARED = ("beta", "device", "dtype", "quiet", "seed", "threads")
"""Options that mean the same in every command that has them."""

ELSEWHERE = ("ENVIRONMENT", "DEFAULT_MAP")  # where values come from that are not on the command line

ORIGINS = "primecli.setup.config"  # key of the contexts' meta: for each parameter, where in the file its value stands
DESCRIPTION_LENGTH = 72  # of an option or a command, in a shell's list of completions


class Command(TyperCommand):
    """A command whose options may also stand in the environment and in the file of `--config`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for name, option in options(self).items():
            option.envvar = variables(str(self.name), name)
            option.show_envvar = False  # said once in `primecli --help`, not on every line of every page
        self.params.append(
            TyperOption(
                param_decls=["--config"],
                type=str,
                metavar="FILE.toml",
                callback=_take_defaults,
                is_eager=True,  # before the other options look for their defaults
                expose_value=False,
                help="Take options from this file; see `primecli --help`.",
            )
        )

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; `configured_options` then knows what it took from elsewhere."""
        invocation.set_configured_options(_taken(self, ctx))
        return super().invoke(ctx)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions, their descriptions in a form that no shell stumbles over."""
        return _described_plainly(super().shell_complete(ctx, incomplete))


class Group(TyperGroup):
    """The commands."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions, their descriptions in a form that no shell stumbles over."""
        return _described_plainly(super().shell_complete(ctx, incomplete))


def _described_plainly(items: list[Any]) -> list[Any]:
    for item in items:
        sentence = (item.help or "").partition("  [")[0].partition(". ")[0]
        plain = " ".join("".join(letter for letter in sentence if letter not in "[](){}'\"`$\\*#<>|&!").split())
        item.help = plain if len(plain) <= DESCRIPTION_LENGTH else plain[: DESCRIPTION_LENGTH - 1].rstrip() + "…"
    return items


def options(command: Any) -> dict[str, TyperOption]:
    """A command's own options, without --config, by their long name without the dashes."""
    found = {option.opts[0].lstrip("-"): option for option in command.params if isinstance(option, TyperOption)}
    return {name: option for name, option in found.items() if option.callback is not _take_defaults}


def variables(command: str, option: str) -> list[str]:
    """The environment variables that an option is taken from, the first one set before the others.

    >>> variables("update-policy", "lr"), variables("verify", "quiet")
    (['PRIMECLI_UPDATE_POLICY_LR'], ['PRIMECLI_VERIFY_QUIET', 'PRIMECLI_QUIET'])
    """
    names = [f"{PREFIX}_{command}_{option}", *([f"{PREFIX}_{option}"] if option in SHARED else [])]
    return [name.upper().replace("-", "_") for name in names]


def _take_defaults(context: typer.Context, option: Any, value: str | None) -> None:
    """Gives a command the defaults of the file: that of its own --config, else of PRIMECLI_CONFIG or primecli's."""
    if context.resilient_parsing:  # a shell asks for completions
        return
    root = context.find_root()
    commands = root.command.commands  # type: ignore[attr-defined]
    _check_variables(str(context.info_name), commands)
    file = value or root.params["config_file"]
    if file is not None:
        found = read_config(Path(file), commands)[str(context.info_name)]
        context.default_map = {name: taken for name, (taken, _) in found.items()}
        context.meta[ORIGINS] = {name: where for name, (_, where) in found.items()}


def _check_variables(name: str, commands: Mapping[str, Any]) -> None:
    """Raises UsageError for a variable that is named like one of this command's options and is none."""

    def prefix(command: str) -> str:
        return f"{PREFIX}_{command}_".upper().replace("-", "_")

    known = {variable for option in options(commands[name]) for variable in variables(name, option)}
    for variable in sorted(os.environ):
        owners = [command for command in commands if variable.startswith(prefix(command))]
        mine = owners and max(owners, key=len) == name
        if mine and os.environ[variable] and variable not in known:
            raise UsageError(f"{variable}: {name} has no such option", _nearest(variable, known, name))


def _nearest(word: str, known: Iterable[str], command: str | None = None) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if found:
        return f"did you mean {found[0]}?"
    return f"`primecli {command} --help` has its options" if command else "`primecli --help` has the commands"


def read_config(path: Path, commands: Mapping[str, Any]) -> dict[str, dict[str, tuple[Any, str]]]:
    """What a file says, by command and parameter: the value, and where in the file it stands.

    All of it is checked, whatever command it is read for. Raises UsageError that names file, section and key.
    """
    document = _read_toml(path)
    found: dict[str, dict[str, tuple[Any, str]]] = {name: {} for name in commands}
    for key, value in document.items():
        if not isinstance(value, dict):
            _take_shared(path, key, value, commands, found)
    seen: set[str] = set()
    for section, keys in document.items():
        if not isinstance(keys, dict):
            continue
        name = section.replace("_", "-")
        if name not in commands:
            raise UsageError(f"{path}: [{section}]: there is no such command", _nearest(name, commands))
        known = options(commands[name])
        for key, value in keys.items():
            where = f"{path}: [{section}] {key}"
            option = known.get(key.replace("_", "-"))
            if option is None:
                raise UsageError(f"{where}: {name} has no such option", _hint(key, known, name))
            if f"{name} {option.name}" in seen:
                raise UsageError(f"{where}: stands there twice")
            seen.add(f"{name} {option.name}")
            found[name][str(option.name)] = (_checked(value, option, where), where)
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error


def _take_shared(
    path: Path, key: str, value: Any, commands: Mapping[str, Any], found: dict[str, dict[str, tuple[Any, str]]]
) -> None:
    name, where = key.replace("_", "-"), f"{path}: {key}"
    if name not in SHARED:
        among = [section for section, command in commands.items() if name in options(command)]
        hint = f"write it below [{among[0]}]" if among else _nearest(name, SHARED)
        raise UsageError(f"{where}: before the first section only {', '.join(SHARED)} may stand", hint)
    for section, command in commands.items():
        option = options(command).get(name)
        if option is not None:
            found[section][str(option.name)] = (_checked(value, option, where), where)


def _hint(key: str, known: Mapping[str, TyperOption], command: str) -> str:
    for name, option in known.items():
        if f"--{key.replace('_', '-')}" in option.secondary_opts:
            return f"write {name} = false"
    return _nearest(key.replace("_", "-"), known, command)


def _checked(value: Any, option: TyperOption, where: str) -> Any:
    """The value, if it is of the option's type; ranges and choices are checked as those of the command line are."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: true or false is meant, not {value!r}")
        return value
    if option.multiple:
        return [_checked_one(item, option.type, where) for item in (value if isinstance(value, list) else [value])]
    if option.nargs > 1:
        if not isinstance(value, list) or len(value) != option.nargs:
            raise UsageError(f"{where}: an array of {option.nargs} is meant, not {value!r}")
        return [_checked_one(item, kind, where) for item, kind in zip(value, option.type.types, strict=True)]  # type: ignore[attr-defined]
    return _checked_one(value, option.type, where)


def _checked_one(value: Any, kind: Any, where: str) -> Any:
    if kind.name.startswith("int"):
        wanted, fits = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif kind.name.startswith("float"):
        wanted, fits = "a number", isinstance(value, int | float) and not isinstance(value, bool)
    else:
        wanted, fits = "text in quotes", isinstance(value, str)
    if not fits:
        raise UsageError(f"{where}: {wanted} is meant, not {value!r}")
    return value


def origin(error: BaseException) -> str:
    """Where the value that a usage error is about was taken from, where that is not the command line; else empty."""
    context, option = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or option is None or not option.name:
        return ""
    source = context.get_parameter_source(option.name)
    if source is None or source.name not in ELSEWHERE:
        return ""
    if source.name == "DEFAULT_MAP":
        return f"{context.meta[ORIGINS][option.name]}: "
    names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
    return f"{next(name for name in names if os.environ.get(name))}: "


def _taken(command: Any, context: Any) -> Iterator[str]:
    """The options that were not on the command line, as words of one."""
    for option in options(command).values():
        source = context.get_parameter_source(option.name)
        if source is None or source.name not in ELSEWHERE:
            continue
        value = context.params[option.name]
        if option.is_flag:
            names = option.opts if value else option.secondary_opts
            yield from names[:1]
            continue
        for one in value if option.multiple else [value]:
            yield option.opts[0]
            yield from (_word(part) for part in (one if option.nargs > 1 else [one]))


def _word(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)
