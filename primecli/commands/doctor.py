"""`primecli doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from primecli.options import Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from primecli.setup.doctor import Check


def doctor(
    iteration: Annotated[
        bool, Option("Run a whole iteration too, with a tiny random model.", flags="--iteration/--no-iteration")
    ] = True,
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
) -> int:
    """At the end a whole iteration runs with real processes, a tiny random model and four prompts, in a temporary
    directory. Nothing is downloaded, nothing is left behind. `note` is good to know; `failed` stops stages from
    working, and gives exit code 1.

    Example:

      primecli doctor --json
    """
    import contextlib
    import json
    from dataclasses import asdict

    from primecli.errors import ReaderClosed
    from primecli.pipeline.progress import say
    from primecli.setup.doctor import checks

    found = []
    if iteration:
        say("doctor", "looks around, then runs an iteration: this takes about half a minute")
    for check in checks(pipeline=iteration):
        found.append(check)
        if check.status == "failed":
            say("doctor", f"{check.name}: {check.found}{f' ({check.hint})' if check.hint else ''}")
    failed = any(check.status == "failed" for check in found)
    with contextlib.suppress(ReaderClosed):  # the exit code is for who reads no further, too
        if as_json:
            print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in found]}, indent=2))
        else:
            _show(found)
    if failed:
        return 1
    return 0


def _show(found: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "failed": "bold red"}
    table = Table(title="primecli doctor", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in found:
        text = Text(check.found)
        if check.hint:
            text.append(f"\n{check.hint}", style="dim")
        table.add_row(Text(check.name), Text(check.status, style=styles[check.status]), text)
    Console(highlight=False).print(table)
