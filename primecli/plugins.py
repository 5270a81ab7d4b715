"""Functions that others plug in: how they are named, found, called, and identified by the content of their code.

A function is named by NAME=module:function or, where an installed package registers one in the entry-point group, by
NAME alone. What it makes is recorded under NAME, together with `Plugin.identity`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec
from pathlib import Path
from typing import Any

from primecli.errors import PrimecliError, UsageError, first_line, is_out_of_memory
from primecli.files import Json, file_hash, fingerprint

ESTIMATORS = "primecli.estimators"
PRM_OBJECTIVES = "primecli.prm_objectives"
POLICY_LOSSES = "primecli.policy_losses"
"""The entry-point groups, each with a contract of its own; docs/plugins.md has them."""

FORM = "NAME=module:function"
HELP = f"Your own: {FORM}, or the name of an installed plug-in."

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""What a plug-in may be called: a word, since it stands in command lines, file names and tables."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A function that is plugged in.

    name: such as loo-median, by which records and messages call it.
    target: module:function, such as primecli_example.estimators:loo_median.
    """

    name: str
    target: str

    def load(self) -> Callable[..., Any]:
        """The function. Raises UsageError where it cannot be imported, or is none."""
        module, _, attribute = self.target.partition(":")
        try:
            function = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        except Exception as error:  # a module may raise anything while it is imported
            raise UsageError(
                f"{self} cannot be imported: {_described(error)}", "--debug shows the traceback"
            ) from error
        if not callable(function):
            raise UsageError(f"{self} is {type(function).__name__}, not a function")
        return function

    def call(self, *arguments: Any, **named: Any) -> Any:
        """What the function returns. Raises PrimecliError where it raises; running out of memory is passed on."""
        function = self.load()
        try:
            return function(*arguments, **named)
        except Exception as error:
            if isinstance(error, PrimecliError) or is_out_of_memory(error):
                raise
            raise PrimecliError(f"{self} failed: {_described(error)}", "--debug shows the traceback") from error

    def identity(self) -> str:
        """What tells one version from another: the target, and a hash of the code of its module or package.

        A function's result may depend on any file of its package, so all of them count; what they import from
        elsewhere does not. Raises UsageError where there is no such file.
        """
        files = _code(self.target.partition(":")[0], str(self))
        return f"{self.target}@{fingerprint({name: file_hash(path) for name, path in files.items()})}"

    def recorded(self, option: str) -> dict[str, Json]:
        """How a recipe records it as the value of an option: by its name and, beside it, its identity.

        option: such as estimator.
        """
        return {option: self.name, f"{option}_plugin": self.identity()}

    def __str__(self) -> str:
        return f"{self.name} ({self.target})"


def metavar(own: Collection[str]) -> str:
    """The placeholder for the value of an option that takes one of these names or a plug-in.

    >>> metavar(["ce", "dpo"])
    '<ce|dpo|NAME=module:function>'
    """
    return f"<{'|'.join([*own, FORM])}>"


def find(text: str, group: str, own: Collection[str]) -> Plugin | None:
    """The plug-in that a text names; None for a name of primecli's own.

    text: a name, or NAME=module:function, whose module may be in the current directory. group: the entry-point group.
    own: the names of what primecli brings, which nobody can take.

    Raises UsageError for an unknown name, or one that two packages register.
    """
    if text in own:
        return None
    name, equals, target = text.partition("=")
    if not equals:
        return _installed(text, group, own)
    module, colon, attribute = target.partition(":")
    if not NAME.fullmatch(name) or not module or not colon or not attribute:
        raise UsageError(f"{text!r} is not {FORM}")
    if module.endswith(".py") or "/" in module:
        raise UsageError(f"{text}: {module} is a file, not a module", "write a.b for a/b.py")
    if name in own:
        raise UsageError(f"{text}: {name} is primecli's own", "choose another name")
    _look_here()
    return Plugin(name, target)


def problem(text: str, group: str, own: Collection[str]) -> str | None:
    """What is wrong with a name, without importing what it names; None if nothing is. As `find`, for `Option.check`."""
    try:
        plugin = find(text, group, own)
        if plugin is not None:
            plugin.identity()
    except UsageError as error:
        return error.message
    return None


def _installed(name: str, group: str, own: Collection[str]) -> Plugin:
    from importlib.metadata import entry_points  # here, because its imports take time that only this needs

    registered: dict[str, set[str]] = {}
    for point in entry_points(group=group):
        registered.setdefault(point.name, set()).add(f"{point.module}:{point.attr}")
    targets = sorted(registered.get(name, ()))
    if not targets:
        known = ", ".join([*own, *sorted(set(registered) - set(own))])
        raise UsageError(f"{name!r} is not one of {known}, nor {FORM}")
    if len(targets) > 1:
        raise UsageError(f"{name} is registered twice, as {' and '.join(targets)}: write {FORM}")
    return Plugin(name, targets[0])


def _look_here() -> None:
    """Lets modules be found in the current directory, after everything that is installed."""
    try:
        here = os.getcwd()
    except OSError:  # the directory is gone, and has no modules
        return
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _code(module: str, of: str) -> Mapping[str, Path]:
    """The files that a module's code is in, by their names: those of its outermost package, or its own alone.

    of: the plug-in, for messages. Raises UsageError where there is none.
    """
    parts = module.split(".")
    names = [".".join(parts[: count + 1]) for count in range(len(parts))]
    specs: list[ModuleSpec] = []
    for name in names:
        try:
            spec = importlib.util.find_spec(name)
        except Exception as error:  # it imports the packages around the module
            raise UsageError(f"{of}: {_described(error)}") from error
        if spec is None:
            raise UsageError(f"{of}: there is no module {name}", "is its directory on PYTHONPATH?")
        specs.append(spec)
    package = next((spec for spec in specs if spec.origin and spec.submodule_search_locations), None)
    if package is not None and package.origin is not None:
        root = Path(package.origin).parent
        suffixes = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
        found = sorted(path for path in root.rglob("*") if path.name.endswith(suffixes) and path.is_file())
        return {path.relative_to(root).as_posix(): path for path in found}
    origin = specs[-1].origin
    if origin is None or not Path(origin).is_file():
        raise UsageError(f"{of}: {module} has no file whose content would tell one version of it from another")
    return {Path(origin).name: Path(origin)}


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
