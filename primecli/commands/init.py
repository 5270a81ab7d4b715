"""`primecli init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from primecli.options import Option


def init(
    context: typer.Context,
    directory: Annotated[Path, Option("Where to write.", argument=True, metavar="DIR")],
    model: Annotated[
        str | None,
        Option("The SFT model to start from.  [default: none, to be written into the Makefile]", metavar="DIR|HUB_ID"),
    ] = None,
    prompts: Annotated[
        Path | None,
        Option("Prompts to train on, Parquet or JSONL.  [default: a file of a few examples]", metavar="FILE"),
    ] = None,
    force: Annotated[bool, Option("Overwrite files that are there.")] = False,
) -> None:
    """The Makefile is the loop: an iteration is a pipeline of stages, iterations follow one another, and a make after
    a kill goes on where it stopped. primecli.toml has every option of the stages, with its meaning and its default.
    Example prompts and a README come with them. Nothing is run or downloaded. A file that exists is not overwritten,
    and then none is written.

    Example:

      \b
      primecli init runs/first --model PRIME-RL/Eurus-2-7B-SFT --prompts train.parquet
      make -C runs/first ITERATIONS=1
    """
    import shlex

    from primecli.errors import UsageError
    from primecli.setup import starter

    if prompts is not None and not prompts.is_file():
        raise UsageError(f"--prompts {prompts}: {'is no file' if prompts.exists() else 'no such file'}")
    commands = context.find_root().command.commands  # type: ignore[attr-defined]
    found = starter.contents(commands, model, prompts)
    starter.write(directory, found, force=force)
    for name in found:
        print(f"wrote {directory / name}")
    missing = "" if model is not None else " MODEL=DIR_OR_HUB_ID"
    print(f"next: make -C {shlex.quote(str(directory))}{missing} ITERATIONS=1, and see {directory / 'README.md'}")
