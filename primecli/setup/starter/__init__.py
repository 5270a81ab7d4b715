"""The files that `primecli init` writes: a Makefile that is the loop, options, a few prompts, and what they are."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from primecli.catalog import STAGES
from primecli.errors import UsageError
from primecli.files import make_directory, write_atomically
from primecli.setup.config import SHARED, options

PROMPTS = "prompts.jsonl"
WIDTH = 118
NOT_FOR_MAKE = re.compile(r"[\s#$%:'\"\\]")

WIRED: Mapping[str, frozenset[str]] = {
    "generate": frozenset({"model", "prompts", "n", "seed", "step", "batch-prompts", "engine", "url", "reload"}),
    "update-prm": frozenset({"prm", "ref", "checkpoint", "seed", "log"}),
    "score-prm": frozenset({"prm", "ref"}),
    "score-values": frozenset({"critic"}),
    "compute-advantages": frozenset({"estimator"}),
    "update-critic": frozenset({"critic", "checkpoint", "seed", "log"}),
    "update-policy": frozenset({"policy", "checkpoint", "seed", "log"}),
}
"""Options that the Makefile gives on the command line, by stage: one in the file would have no effect."""

OF_ONE_CALL = frozenset({"out", "log-dir", "force", "partial"})
"""Options that mean one call of a stage, and no run."""


def contents(commands: Mapping[str, Any], model: str | None, prompts: Path | None) -> dict[str, str]:
    """The texts of the files by name. commands: primecli's, by name. prompts: None for a file of examples.

    Raises UsageError for names that make cannot work with.
    """
    model = None if model is None else _absolute(model)
    found = {
        "Makefile": _template("Makefile")
        .replace("@MODEL@", _for_make("--model", model or ""))
        .replace("@PROMPTS@", PROMPTS if prompts is None else _for_make("--prompts", str(prompts.absolute())))
        .replace("?= \n", "?=\n"),
        "primecli.toml": options_file(commands),
        "README.md": _template("README.md"),
    }
    if prompts is None:
        return {**found, PROMPTS: _template(PROMPTS)}
    found["README.md"] = "".join(
        line for line in found["README.md"].splitlines(keepends=True) if not line.startswith(f"| `{PROMPTS}`")
    )
    return found


def _template(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def _absolute(model: str) -> str:
    """A directory as an absolute path, since make runs elsewhere; a hub id as it is."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def _for_make(option: str, text: str) -> str:
    if NOT_FOR_MAKE.search(text):
        raise UsageError(f"{option} {text}: make cannot work with such a name", "give it another one, or a link to it")
    return text


def write(directory: Path, found: Mapping[str, str], *, force: bool) -> None:
    """Writes all of the files, or none of them where one is there already and `force` is not given."""
    there = [str(directory / name) for name in found if (directory / name).exists()]
    if there and not force:
        exist = "exists" if len(there) == 1 else "exist"
        raise UsageError(f"{', '.join(there)} {exist} already", "name another directory, or overwrite with --force")
    make_directory(directory)
    for name, text in found.items():
        data = text.encode()
        write_atomically(directory / name, lambda file, data=data: _put(file, data))  # type: ignore[misc]


def _put(file: Any, data: bytes) -> None:
    file.write(data)


def options_file(commands: Mapping[str, Any]) -> str:
    """primecli.toml: every option that a stage of the loop takes from it, commented out, with its default."""
    lines = [
        "# Options of the stages, for --config or PRIMECLI_CONFIG. Each stands here with its default, as a comment:",
        "# take the mark away to change one. The Makefile gives models, prompts, numbers and seed; that goes first.",
        "",
        "# For all stages that have them.",
    ]
    for name in SHARED:
        owner = next((stage for stage in STAGES if name in options(commands[stage])), None)
        if owner is not None and name not in WIRED.get(owner, ()):
            lines += _entry(name, options(commands[owner])[name])
    for stage in STAGES:
        command = commands[stage]
        lines += ["", f"[{stage}]", f"# {(command.help or '').strip().partition(chr(10))[0]}"]
        for name, option in options(command).items():
            if name not in SHARED and name not in OF_ONE_CALL and name not in WIRED.get(stage, ()):
                lines += _entry(name, option)
    return "\n".join(lines) + "\n"


def _entry(name: str, option: Any) -> list[str]:
    """An option: its help as comments, then it with its default, commented out."""
    choices = getattr(option.type, "choices", None)
    text = option.help if choices is None else f"{option.help} One of {', '.join(map(_text, choices))}."
    return [
        "",
        *textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False),
        f"# {name} = {_value(option)}".rstrip(),
    ]


def _text(choice: Any) -> str:
    return str(getattr(choice, "value", choice))


def _value(option: Any) -> str:
    """An option's default in TOML; nothing where it has none."""
    default = getattr(option.default, "value", option.default)
    if option.multiple:
        return "[]"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return re.sub(r"e([+-])0+", r"e\1", repr(default))
    if isinstance(default, tuple | list):
        return json.dumps(list(default))
    return "" if default is None else json.dumps(default, ensure_ascii=False)
