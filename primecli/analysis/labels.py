"""Several inputs beside each other: which paths belong together, and what each is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from primecli.pipeline.inputs import expand_path


def inputs_by_label(arguments: Sequence[str]) -> dict[str, Sequence[str]]:
    """What is looked at apart: each directory if several are named, in the order of their numbers, else everything."""
    paths = [] if list(arguments) == ["-"] else [path for text in arguments for path in expand_path(text)]
    if len(paths) > 1 and all(path.is_dir() for path in paths):
        return {name: [name] for name in sorted(map(str, paths), key=_natural)}
    return {arguments[0] if len(arguments) == 1 else "": arguments}


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts runs/2 before runs/10.

    >>> sorted(["runs/10/x", "runs/2/x"], key=_natural)
    ['runs/2/x', 'runs/10/x']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def shortened(names: list[str]) -> list[str]:
    """Paths without the parts that all of them begin and end with, unless that leaves nothing of one.

    >>> shortened(["runs/1/score-prm", "runs/2/score-prm"])
    ['1', '2']
    """
    parts = [Path(name).parts for name in names]
    first = last = 0
    shortest = min(map(len, parts))
    while first < shortest and len({part[first] for part in parts}) == 1:
        first += 1
    while last < shortest - first and len({part[-1 - last] for part in parts}) == 1:
        last += 1
    short = ["/".join(part[first : len(part) - last]) for part in parts]
    return short if len(names) > 1 and all(short) else names
