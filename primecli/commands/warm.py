"""`primecli warm`."""

from __future__ import annotations

from typing import Annotated

from primecli.options import Option


def warm(
    command: Annotated[
        tuple[str, ...], Option("What to run, with its arguments.", argument=True, metavar="-- COMMAND...")
    ],
) -> None:
    """Beside COMMAND runs a helper that has imported torch and transformers. A stage that needs them is forked from it
    and gives the same result, exit code and files, without the seconds that the imports take. The helper ends
    with COMMAND; a stage that then still runs is interrupted.

    A stage starts in the plain way, and says why, where the helper has ended, where the code on disk has changed, or
    where an environment variable that libraries read when they are imported is not the helper's. On other systems than
    Linux all stages do.

    Example:

      primecli warm -- make -j1
    """
    from primecli.warm.launch import become_command

    become_command(command)
