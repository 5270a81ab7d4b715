"""The command line of this process, and what it took from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

_taken: ContextVar[tuple[str, ...]] = ContextVar("taken", default=())


def take_from_elsewhere(words: Iterable[str]) -> None:
    """Notes what the command that is about to run takes from variables and a file, as words of a command line."""
    _taken.set(tuple(words))


def taken_from_elsewhere() -> list[str]:
    """What the command that runs took from variables and a file, as words of a command line."""
    return list(_taken.get())


def without_file(words: Iterable[str]) -> list[str]:
    """The words of a command line without --config and its file.

    >>> without_file(["primecli", "--config", "a.toml", "stats", "--config=b.toml", "--json"])
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
