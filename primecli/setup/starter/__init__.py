"""The files that `primecli init` writes: a Makefile that is the training loop, options, example prompts, a README."""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from primecli.catalog import STAGES
from primecli.errors import UsageError
from primecli.files import make_directory, remove_abandoned, write_text_atomically
from primecli.printable import printable
from primecli.setup.config import SHARED, options
from primecli.setup.disk_needs import PAIRS_AT_ONCE, DiskNeeds, disk_needs, free_bytes, size

PROMPTS = "prompts.jsonl"
HELDOUT = "heldout.jsonl"
WIDTH = 118  # of comments in primecli.toml
NOT_FOR_MAKE = re.compile(r"[\s#$%:'\"\\]")  # characters that a path in a Makefile cannot have

WIRED: Mapping[str, frozenset[str]] = {
    "generate": frozenset({"model", "prompts", "n", "seed", "step", "batch-prompts", "engine", "url", "reload"}),
    "update-prm": frozenset({"prm", "ref", "checkpoint", "seed", "log"}),
    "score-prm": frozenset({"prm", "ref"}),
    "score-values": frozenset({"critic"}),
    "compute-advantages": frozenset({"estimator", "process-share", "process-trust"}),
    "update-critic": frozenset({"critic", "checkpoint", "seed", "log"}),
    "update-policy": frozenset({"policy", "checkpoint", "seed", "log"}),
}
"""Options that the Makefile passes on the command line, by stage. In primecli.toml they would have no effect."""

OF_ONE_CALL = frozenset({"out", "log-dir", "force", "partial"})
"""Options that belong to a single call of a stage, not to a run."""


def write_starter(
    directory: Path,
    *,
    commands: Mapping[str, Any],
    model: str | None,
    prompts: Path | None,
    heldout: Path | None,
    force: bool,
) -> None:
    """Writes the files and says what to do next.

    commands: primecli's commands, by name. model: the SFT model. prompts: a file of prompts; None for examples.
    heldout: a file of prompts to evaluate on; None for the examples' or, beside a user's own prompts, for no
    evaluation. force: overwrite files that exist. Raises UsageError if there is no such file of prompts, if a file to
    be written exists with another text, and for names that make cannot handle.
    """
    for option, file in (("--prompts", prompts), ("--heldout", heldout)):
        if file is not None and not file.is_file():
            raise UsageError(f"{option} {file}: {'not a file' if file.exists() else 'no such file'}")
    texts = contents(commands, model, prompts, heldout)
    _write(directory, texts, force=force)
    for name in texts:
        print(printable(f"wrote {directory / name}"))
    if prompts is not None and heldout is None:
        print("no held-out prompts, so nothing will be evaluated: name some with --heldout, or make HELDOUT=FILE")
    if model is not None:
        print(printable(_disk_line(model, directory)))
    missing = "" if model is not None else " MODEL=DIR_OR_HUB_ID"
    next_step = f"next: make -C {shlex.quote(str(directory))}{missing} ITERATIONS=1, and see {directory / 'README.md'}"
    print(printable(next_step))


def _disk_line(model: str, directory: Path) -> str:
    """How much disk the loop needs with this model, and how much is free."""
    needs, free = disk_needs(model), f"{size(free_bytes(directory))} free in {directory}"
    if needs is not None:
        return f"disk: {needs.in_words()}; {free}"
    each = DiskNeeds(1, 2).iteration()
    return (
        f"disk: an iteration writes {each} bytes for each parameter of a bfloat16 model, and the loop keeps the "
        f"checkpoints of up to {PAIRS_AT_ONCE} iterations, see KEEP in the Makefile; {free}"
    )


def contents(
    commands: Mapping[str, Any], model: str | None, prompts: Path | None, heldout: Path | None = None
) -> dict[str, str]:
    """The text of each file, by name. Arguments and errors as in `write_starter`."""
    examples = {}
    if prompts is None:
        examples[PROMPTS] = _template(PROMPTS)
        if heldout is None:
            examples[HELDOUT] = _template(HELDOUT)
    values = {
        "@MODEL@": _for_make("--model", "" if model is None else _absolute(model)),
        "@PROMPTS@": PROMPTS if prompts is None else _for_make("--prompts", str(prompts.absolute())),
        "@HELDOUT@": HELDOUT if HELDOUT in examples else "",
    }
    if heldout is not None:
        values["@HELDOUT@"] = _for_make("--heldout", str(heldout.absolute()))
    makefile = _template("Makefile")
    for mark, value in values.items():
        makefile = makefile.replace(mark, value)
    unused = tuple(f"| `{name}`" for name in (PROMPTS, HELDOUT) if name not in examples)
    readme = _template("README.md").splitlines(keepends=True)
    return {
        "Makefile": makefile.replace("?= \n", "?=\n"),
        "primecli.toml": options_file(commands),
        "README.md": "".join(line for line in readme if not (unused and line.startswith(unused))),
        **examples,
    }


def _template(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def _absolute(model: str) -> str:
    """A directory as an absolute path, since make runs in another one; a hub id unchanged."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def _for_make(option: str, text: str) -> str:
    if NOT_FOR_MAKE.search(text):
        raise UsageError(f"{option} {text}: make cannot handle this name", "rename it, or make a link to it")
    return text


def _write(directory: Path, texts: Mapping[str, str], *, force: bool) -> None:
    """Writes all of the files, or none if one of them exists with another text and `force` is not given."""
    differing = {name: text for name, text in texts.items() if not _holds(directory / name, text)}
    existing = [str(directory / name) for name in differing if os.path.lexists(directory / name)]
    if existing and not force:
        exist = "exists" if len(existing) == 1 else "exist"
        raise UsageError(f"{', '.join(existing)} {exist} already", "name another directory, or overwrite with --force")
    make_directory(directory)
    for name in texts:
        remove_abandoned(directory / name)
    for name, text in differing.items():
        write_text_atomically(directory / name, text)


def _holds(path: Path, text: str) -> bool:
    """Whether a file holds this text, as after an `init` that was killed before it had written the others."""
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def options_file(commands: Mapping[str, Any]) -> str:
    """primecli.toml: every option that a stage of the loop can take from it, commented out, with its default."""
    lines = [
        "# Options of the stages, for --config or PRIMECLI_CONFIG. Each one is commented out, with its default: remove",
        "# the # to change it. Models, prompts, numbers and the seed come from the Makefile, which takes precedence.",
        "",
        "# For every stage that has them.",
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
    """An option: its help as comments, then its name and default, commented out."""
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
    """An option's default as TOML; empty if it has none."""
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
