"""`primecli lineage`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from rich.tree import Tree

    from primecli.lineage import Made, Record


UNLIMITED = 100_000  # columns, where no terminal limits them: a command stays on its line


def lineage(
    made: Annotated[
        Path, typer.Argument(metavar="SHARD|CHECKPOINT", help="A shard, a directory of shards, or a checkpoint.")
    ],
    diff: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--diff",
            metavar="OTHER",
            help="Say instead what differs between it and another.",
            show_default=False,
        ),
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Print instead the shell commands that make it again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what made a shard or a checkpoint.

    A tree of the commands, the newest first, with the models they used and those models' own origins.
    --diff compares configuration, models, seeds and versions, stage by stage. --replay prints a script that
    makes it again in the same places; what is there already is skipped when it runs.

    Example:

      \b
      primecli lineage ckpt/policy/3
      primecli lineage runs/1/score-prm --diff runs/2/score-prm
      primecli lineage runs/1/compute-advantages --replay > again.sh
    """
    import json

    from primecli import lineage as tracing
    from primecli.errors import UsageError

    if replay and diff is not None:
        raise UsageError("--replay and --diff are asked for at once", "choose one")
    found = tracing.look_up(made)
    if replay:
        print(tracing.replay(found))
    elif diff is not None:
        _show_differences(found, tracing.look_up(diff), as_json)
    elif as_json:
        chain = [dict(record) for record in found.chain]
        print(json.dumps({"path": str(found.path), "fingerprint": found.fingerprint, "chain": chain}, indent=2))
    else:
        _show(found)


def _show(made: Made) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(_title(made), style="bold"), guide_style="dim")
    _grow(tree, made, set())
    Console(highlight=False, width=None if sys.stdout.isatty() else UNLIMITED).print(tree)


def _title(made: Made) -> str:
    step = "" if made.step is None else f", step {made.step}"
    return f"{made.path}  ({made.fingerprint[:12]}{step})"


def _grow(tree: Tree, made: Made, shown: set[Path]) -> None:
    """Adds the commands that made it, each below the one that came after."""
    place = tree
    for record in reversed(made.chain):
        place = place.add(_command(record))
        _add_models(place, record, shown)
        if made.step is not None:
            _add_inputs(place, record)


def _command(record: Record) -> Any:
    from rich.text import Text

    seconds = record.get("seconds")
    text = Text(str(record.get("stage")), style="bold cyan")
    text.append(f"  {record.get('started')}" + (f", {seconds:.1f} s" if seconds is not None else ""), style="dim")
    text.append(f"\n{record.get('command')}")
    return text


def _add_models(place: Tree, record: Record, shown: set[Path]) -> None:
    from rich.text import Text

    from primecli.lineage import models_of

    for model in models_of(record):
        name = model.name or "?"
        if model.made is None:
            place.add(Text(f"{model.role}: {name}  ({model.fingerprint[:12]})"))
            continue
        branch = place.add(Text(f"{model.role}: {_title(model.made)}"))
        if model.made.path not in shown:
            shown.add(model.made.path)
            _grow(branch, model.made, shown)


def _add_inputs(place: Tree, record: Record) -> None:
    from rich.text import Text

    from primecli.lineage import input_directories

    for directory in input_directories(record):
        count = sum(Path(entry["path"]).parent == directory for entry in record["inputs"])
        gone = "" if directory.exists() else ", no longer here"
        place.add(Text(f"trained on {count} shard{'s' if count > 1 else ''} of {directory}{gone}"))


def _show_differences(first: Made, second: Made, as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from primecli.lineage import differences

    found = list(differences(first, second))
    if as_json:
        rows = [{"stage": row.stage, "name": row.name, "first": row.first, "second": row.second} for row in found]
        print(json.dumps(rows, indent=2))
        return
    if not found:
        print("nothing differs")
        return
    table = Table()
    for heading in ("stage", "", str(first.path), str(second.path)):
        table.add_column(escape(heading), overflow="fold")
    for row in found:
        table.add_row(row.stage, escape(row.name), escape(str(row.first)), escape(str(row.second)))
    Console(highlight=False).print(table)
