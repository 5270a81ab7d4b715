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
        Option("The SFT model to start from.  [default: none; write it into the Makefile]", metavar="DIR|HUB_ID"),
    ] = None,
    prompts: Annotated[
        Path | None,
        Option("Prompts to train on, Parquet or JSONL.  [default: a file with a few examples]", metavar="FILE"),
    ] = None,
    heldout: Annotated[
        Path | None,
        Option(
            "Held-out prompts to evaluate on, Parquet or JSONL.  [default: a file with a few examples; none with "
            "--prompts]",
            metavar="FILE",
        ),
    ] = None,
    force: Annotated[bool, Option("Overwrite existing files.")] = False,
) -> None:
    """The Makefile is the training loop: each iteration is a pipeline of stages, and after a kill `make` continues
    where it stopped. primecli.toml lists every option that the Makefile does not set, with its meaning and its
    default. A README and, if you name no prompts, some examples come with them. Nothing is run or downloaded. If one
    of the files exists and is not what would be written, none is written.

    Example:

      \b
      primecli init runs/first --model PRIME-RL/Eurus-2-7B-SFT --prompts train.parquet \\
        --heldout aime.parquet
      make -C runs/first ITERATIONS=1
    """
    from primecli.setup.starter import write_starter

    commands = context.find_root().command.commands  # type: ignore[attr-defined]
    write_starter(directory, commands=commands, model=model, prompts=prompts, heldout=heldout, force=force)
