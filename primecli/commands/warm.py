"""`primecli warm`."""

from __future__ import annotations

from typing import Annotated

from primecli.options import Option


def warm(
    command: Annotated[
        tuple[str, ...], Option("The command to run, with its arguments.", argument=True, metavar="-- COMMAND...")
    ],
) -> None:
    """A helper that has imported torch and transformers runs beside COMMAND. Stages are forked from it, which gives the
    same results, exit codes and files without the seconds that the imports take. The helper exits with COMMAND; a stage
    that is still running then is interrupted.

    A stage starts without the helper, and says why, if the helper has exited, if the code on disk has changed, or if an
    environment variable that libraries read when they are imported has another value than in the helper. Outside Linux
    that goes for all stages.

    Example:

      primecli warm -- make -j1
    """
    from primecli.warm.launch import become_command

    become_command(command)
