"""`primecli report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from primecli.options import Option, Quiet
from primecli.report.write import Format, write_report


def report(
    runs: Annotated[
        tuple[str, ...],
        Option("Run directories, or globs; NAME=DIR gives a run another name.", argument=True, metavar="RUNS..."),
    ],
    out: Annotated[
        Path | None, Option("File to write.  [default: report.html; with --format md, stdout]", metavar="FILE")
    ] = None,
    format: Annotated[Format, Option("html for a browser, md for a pull request.")] = Format.html,
    max_rollouts: Annotated[
        int, Option("Rollouts to show, in whole groups, taken evenly from all iterations; 0 for none.", min=0)
    ] = 2000,
    tokenizer: Annotated[
        str | None,
        Option(
            "Tokenizer that spells the tokens.  [default: that of the model that sampled, if it still exists]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    compress: Annotated[
        bool, Option("Compress the rollouts in the page with gzip.", flags="--compress/--no-compress")
    ] = True,
    force: Annotated[bool, Option("Overwrite a file that is not a report.")] = False,
    quiet: Quiet = False,
) -> None:
    """A run is a directory with _summary.json files, which the stages leave, somewhere below it. The number in a path
    is the iteration (runs/a/3/verify, runs/a/policy/3); everything below a directory called eval, test, heldout or val
    is an evaluation. Curves come from the summaries alone, rollouts from the shards that are left.

    The page is a single file that loads nothing: open it, send it, archive it. It compares runs, and shows rollouts
    with the reward of each token. A run that failed or is still running is shown as far as it got.

    Example:

      primecli report runs/a runs/b --out report.html
    """
    write_report(
        runs,
        out=out,
        format=format,
        max_rollouts=max_rollouts,
        tokenizer=tokenizer,
        compress=compress,
        force=force,
        quiet=quiet,
    )
