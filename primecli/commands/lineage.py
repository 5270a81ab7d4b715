"""`primecli lineage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from primecli.options import Option


def lineage(
    made: Annotated[
        tuple[str, ...],
        Option(
            "Shards, directories of them, checkpoints or globs. With none, or with -, paths are read from stdin.",
            argument=True,
            metavar="[SHARD|CHECKPOINT]...",
        ),
    ] = (),
    diff: Annotated[Path | None, Option("Say instead what differs between it and another.", metavar="OTHER")] = None,
    replay: Annotated[bool, Option("Print instead the shell commands that make it again.")] = False,
    depth: Annotated[
        int | None, Option("Follow so many models and inputs one behind another.  [default: all]", min=0)
    ] = None,
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
) -> None:
    """A tree of the commands, the newest first, with the models and shards they used and their own origins.
    --diff compares configuration, models, seeds and versions, stage by stage. --replay prints a script that
    makes it again in the same places, to be run where the commands were run; what is there already is skipped.

    Example:

      \b
      primecli lineage ckpt/policy/3
      primecli lineage runs/1/score-prm --diff runs/2/score-prm
      primecli lineage runs/1/compute-advantages --replay > again.sh
    """
    from primecli.analysis.lineage_view import show_lineage

    show_lineage(made, diff=diff, replay=replay, depth=depth, as_json=as_json)
