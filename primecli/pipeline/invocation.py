"""How the running command was called: its options from environment variables and the --config file, and where."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextvars import ContextVar

_configured: ContextVar[tuple[str, ...]] = ContextVar("configured", default=())


def set_configured_options(words: Iterable[str]) -> None:
    """Records the options that do not come from the command line, as the words one would type, before the command runs.

    words: such as --lr and 1e-6, one after the other.
    """
    _configured.set(tuple(words))


def configured_options() -> list[str]:
    """The options of the running command that do not come from its command line, as the words one would type."""
    return list(_configured.get())


def without_config(words: Iterable[str]) -> list[str]:
    """The words of a command line without --config and its file.

    >>> without_config(["primecli", "--config", "a.toml", "stats", "--config=b.toml", "--json"])
    ['primecli', 'stats', '--json']
    """
    rest = iter(words)
    kept = []
    for word in rest:
        if word == "--config":
            next(rest, None)
        elif not word.startswith("--config="):
            kept.append(word)
    return kept


def working_directory() -> str | None:
    """The directory in which the command runs, for a record; None if it is gone, or if its name is not UTF-8."""
    try:
        directory = os.getcwd()
        directory.encode()
    except (OSError, UnicodeEncodeError):
        return None
    return directory
