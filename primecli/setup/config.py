"""Options from environment variables and from a TOML file, for all commands.

The value of an option is, in order of precedence:

1. what the command line says;
2. the variable PRIMECLI_<COMMAND>_<OPTION> or, for SHARED options, PRIMECLI_<OPTION>;
3. the file's section for the command or, for SHARED options, the file's keys before the first section;
4. its default.

A file looks like this:

    seed = 1                     # only SHARED options, before the first section

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

from primecli.errors import InputError, UsageError
from primecli.pipeline import invocation
from primecli.structures import read_toml

PREFIX = "PRIMECLI"
SHARED = ("beta", "device", "dtype", "quiet", "seed", "threads")
"""The options that mean the same in every command that has them."""

ELSEWHERE = ("ENVIRONMENT", "DEFAULT_MAP")  # Typer's names for sources of values other than the command line

ORIGINS = "primecli.setup.config"  # key in a context's meta: the position in the file of each parameter's value
DESCRIPTION_LENGTH = 72  # of an option or a command, in a shell's list of completions


class Command(TyperCommand):
    """A command whose options may also come from environment variables and from the file that --config names."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for name, option in options(self).items():
            option.envvar = variables(str(self.name), name)
            option.show_envvar = False  # `primecli --help` explains them once
        self.params.append(
            TyperOption(
                param_decls=["--config"],
                type=str,
                metavar="FILE.toml",
                callback=_take_defaults,
                is_eager=True,  # before the other options look up their defaults
                expose_value=False,
                help="Read options from this file; see `primecli --help`.",
            )
        )

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, after recording which options do not come from the command line."""
        invocation.set_configured_options(_configured_options(self, ctx))
        return super().invoke(ctx)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions with plain descriptions."""
        return _with_plain_descriptions(super().shell_complete(ctx, incomplete))


class Group(TyperGroup):
    """A group of commands whose completions have plain descriptions."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions with plain descriptions."""
        return _with_plain_descriptions(super().shell_complete(ctx, incomplete))


def _with_plain_descriptions(items: list[Any]) -> list[Any]:
    """Shortens the descriptions of completions to one sentence without characters that a shell would interpret."""
    for item in items:
        sentence = (item.help or "").partition("  [")[0].partition(". ")[0]
        plain = " ".join("".join(letter for letter in sentence if letter not in "[](){}'\"`$\\*#<>|&!").split())
        item.help = plain if len(plain) <= DESCRIPTION_LENGTH else plain[: DESCRIPTION_LENGTH - 1].rstrip() + "…"
    return items


def options(command: Any) -> dict[str, TyperOption]:
    """A command's own options, without --config, by their long name without the leading dashes."""
    by_name = {option.opts[0].lstrip("-"): option for option in command.params if isinstance(option, TyperOption)}
    return {name: option for name, option in by_name.items() if option.callback is not _take_defaults}


def variables(command: str, option: str) -> list[str]:
    """The environment variables that may set an option; the first one that is set counts.

    >>> variables("update-policy", "lr"), variables("verify", "quiet")
    (['PRIMECLI_UPDATE_POLICY_LR'], ['PRIMECLI_VERIFY_QUIET', 'PRIMECLI_QUIET'])
    """
    names = [f"{PREFIX}_{command}_{option}", *([f"{PREFIX}_{option}"] if option in SHARED else [])]
    return [name.upper().replace("-", "_") for name in names]


def _take_defaults(context: typer.Context, option: Any, value: str | None) -> None:
    """Sets a command's defaults from the file of its own --config, else of primecli's --config or PRIMECLI_CONFIG."""
    if context.resilient_parsing:  # a shell asks for completions
        return
    root = context.find_root()
    commands = root.command.commands  # type: ignore[attr-defined]
    _check_variables(str(context.info_name), commands)
    file = value or root.params["config_file"]
    if file is not None:
        entries = read_config(Path(file), commands)[str(context.info_name)]
        context.default_map = {name: default for name, (default, _) in entries.items()}
        context.meta[ORIGINS] = {name: where for name, (_, where) in entries.items()}


def _check_variables(name: str, commands: Mapping[str, Any]) -> None:
    """Raises UsageError for an environment variable with this command's prefix that is not one of its options."""

    def prefix(command: str) -> str:
        return f"{PREFIX}_{command}_".upper().replace("-", "_")

    known = {variable for option in options(commands[name]) for variable in variables(name, option)}
    for variable in sorted(os.environ):
        owners = [command for command in commands if variable.startswith(prefix(command))]
        is_owner = owners and max(owners, key=len) == name
        if is_owner and os.environ[variable] and variable not in known:
            raise UsageError(f"{variable}: {name} has no such option", _nearest(variable, known, name))


def _nearest(word: str, known: Iterable[str], command: str | None = None) -> str:
    """A hint for an unknown word: the known word most like it, else where the known ones are listed."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if matches:
        return f"did you mean {matches[0]}?"
    return f"`primecli {command} --help` lists its options" if command else "`primecli --help` lists the commands"


def read_config(path: Path, commands: Mapping[str, Any]) -> dict[str, dict[str, tuple[Any, str]]]:
    """The values in a file, by command and parameter, each with its position, such as "a.toml: [filter] groups".

    The whole file is checked, for all commands. Raises UsageError that names the file, the section and the key.
    """
    try:
        document = read_toml(path)
    except InputError as error:
        raise UsageError(error.message, error.hint) from error
    entries: dict[str, dict[str, tuple[Any, str]]] = {name: {} for name in commands}
    for key, value in document.items():
        if not isinstance(value, dict):
            _add_shared(path, key, value, commands, entries)
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
                raise UsageError(f"{where}: is set twice")
            seen.add(f"{name} {option.name}")
            entries[name][str(option.name)] = (_checked(value, option, where), where)
    return entries


def _add_shared(
    path: Path, key: str, value: Any, commands: Mapping[str, Any], entries: dict[str, dict[str, tuple[Any, str]]]
) -> None:
    """Adds a key from before the first section to the entries of every command that has the option."""
    name, where = key.replace("_", "-"), f"{path}: {key}"
    if name not in SHARED:
        owners = [section for section, command in commands.items() if name in options(command)]
        hint = f"write it below [{owners[0]}]" if owners else _nearest(name, SHARED)
        raise UsageError(f"{where}: only {', '.join(SHARED)} may come before the first section", hint)
    for section, command in commands.items():
        option = options(command).get(name)
        if option is not None:
            entries[section][str(option.name)] = (_checked(value, option, where), where)


def _hint(key: str, known: Mapping[str, TyperOption], command: str) -> str:
    """What to write instead of an unknown key. known: the options of the command, by name."""
    for name, option in known.items():
        if f"--{key.replace('_', '-')}" in option.secondary_opts:
            return f"write {name} = false"
    return _nearest(key.replace("_", "-"), known, command)


def _checked(value: Any, option: TyperOption, where: str) -> Any:
    """The value, if it has the option's type. Typer checks ranges and choices later, as it does on the command line."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: must be true or false, not {value!r}")
        return value
    if option.multiple:
        return [_checked_one(item, option.type, where) for item in (value if isinstance(value, list) else [value])]
    if option.nargs > 1:
        if not isinstance(value, list) or len(value) != option.nargs:
            raise UsageError(f"{where}: must be an array of {option.nargs}, not {value!r}")
        return [_checked_one(item, kind, where) for item, kind in zip(value, option.type.types, strict=True)]  # type: ignore[attr-defined]
    return _checked_one(value, option.type, where)


def _checked_one(value: Any, kind: Any, where: str) -> Any:
    if kind.name.startswith("int"):
        expected, fits = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif kind.name.startswith("float"):
        expected, fits = "a number", isinstance(value, int | float) and not isinstance(value, bool)
    else:
        expected, fits = "text in quotes", isinstance(value, str)
    if not fits:
        raise UsageError(f"{where}: must be {expected}, not {value!r}")
    return value


def origin(error: BaseException) -> str:
    """Where the value that a usage error is about comes from, as a prefix for messages; empty for the command line."""
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


def _configured_options(command: Any, context: Any) -> Iterator[str]:
    """The options that do not come from the command line, as the words one would type."""
    for option in options(command).values():
        source = context.get_parameter_source(option.name)
        if source is None or source.name not in ELSEWHERE:
            continue
        value = context.params[option.name]
        if option.is_flag:
            names = option.opts if value else option.secondary_opts
            yield from names[:1]
            continue
        for item in value if option.multiple else [value]:
            yield option.opts[0]
            yield from (_word(part) for part in (item if option.nargs > 1 else [item]))


def _word(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)
