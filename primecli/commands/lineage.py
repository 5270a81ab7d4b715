"""`primecli lineage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from primecli.options import Option
from primecli.setup import config


def lineage(
    context: typer.Context,
    paths: Annotated[
        tuple[str, ...],
        Option(
            "Shards, directories of them, checkpoints or globs. With none, or with -, paths are read from stdin.",
            argument=True,
            metavar="[SHARD|CHECKPOINT]...",
        ),
    ] = (),
    diff: Annotated[
        Path | None, Option("Print what differs from another shard or checkpoint instead.", metavar="OTHER")
    ] = None,
    replay: Annotated[bool, Option("Print the shell commands that make it again instead.")] = False,
    depth: Annotated[
        int | None, Option("How many levels of models and inputs to follow.  [default: all]", min=0)
    ] = None,
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
) -> None:
    """Prints a tree of the commands that made it, the newest first, with the models and shards that they used and where
    those come from. --diff compares configuration, models, seeds and versions, stage by stage. --replay prints a script
    that makes it again in the same places, for you to run where the commands were run; it skips what is already there.
    Somebody else's files may hold any command: the script has stages of primecli and their options only, and says what
    it leaves out. A pipeline that would run code named in the file (such as --verifier MODULE:FUNCTION) is a comment,
    until you remove the #.

    Example:

      \b
      primecli lineage ckpt/policy/3
      primecli lineage runs/1/score-prm --diff runs/2/score-prm
      primecli lineage runs/1/compute-advantages --replay > again.sh
    """
    from primecli.analysis.lineage_view import show_lineage

    commands = context.find_root().command.commands  # type: ignore[attr-defined]
    show_lineage(
        paths,
        diff=diff,
        replay=replay,
        depth=depth,
        as_json=as_json,
        find_options=lambda stage: config.options(commands[stage]),
    )
