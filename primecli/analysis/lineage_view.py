"""What `primecli lineage` prints: the origin of shards and checkpoints as a tree, as JSON, or as a script."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.analysis.lineage import (
    Origin,
    Record,
    differences,
    find_origin,
    input_directories,
    located,
    models_of,
)
from primecli.analysis.replay import FindOptions, replay_script
from primecli.analysis.terminal import plain_table, printable_text
from primecli.errors import InputError, UsageError
from primecli.printable import printable

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

UNLIMITED_WIDTH = 100_000  # columns where no terminal limits them, so that each command stays on its line
SHOWN_FINGERPRINT = 12  # characters; enough to tell two apart


def show_lineage(
    arguments: Sequence[str],
    *,
    diff: Path | None,
    replay: bool,
    depth: int | None,
    as_json: bool,
    find_options: FindOptions,
) -> None:
    """Prints where shards and checkpoints come from.

    arguments: paths as on the command line. diff: another shard or checkpoint to compare with instead.
    replay: print a script instead. depth: how many models and inputs to follow; None is all. find_options: gives the
    options of a stage.
    Raises UsageError where options do not fit together, InputError where another tool made the path.
    """
    import json

    from primecli.pipeline.inputs import named_paths
    from primecli.pipeline.progress import say

    if replay and diff is not None:
        raise UsageError("--replay and --diff exclude each other", "choose one")
    paths = list(named_paths(arguments))
    if (replay or diff is not None) and len(paths) != 1:
        option = "--replay" if replay else "--diff"
        raise UsageError(f"{option} takes one shard or checkpoint, and {len(paths)} are given")
    for path in paths:
        origin = find_origin(path)
        if replay:
            made = replay_script(origin, find_options)
            print(made.script)
            if made.disabled:
                what = "a pipeline is a comment" if made.disabled == 1 else f"{made.disabled} pipelines are comments"
                say("lineage", f"{what}: the script says why, look at it before you run it")
        elif diff is not None:
            _show_differences(origin, find_origin(diff), names=(str(path), str(diff)), as_json=as_json)
        elif as_json:
            chain = [dict(record) for record in origin.chain]
            print(json.dumps({"path": str(origin.path), "fingerprint": origin.fingerprint, "chain": chain}, indent=2))
        else:
            _show_tree(origin, depth)


def _show_tree(origin: Origin, depth: int | None) -> None:
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree(printable_text(_title(origin), "bold"), guide_style="dim")
    _grow(tree, origin, {origin.path}, depth)
    Console(highlight=False, width=None if sys.stdout.isatty() else UNLIMITED_WIDTH).print(tree)


def _title(origin: Origin) -> str:
    return f"{origin.path}  {_identity(origin)}"


def _identity(origin: Origin) -> str:
    step = "" if origin.step is None else f", step {origin.step}"
    others = f", one of {origin.alike} made the same way" if origin.alike > 1 else ""
    others += f"; {origin.unlike} more made another way" if origin.unlike else ""
    return f"({origin.fingerprint[:SHOWN_FINGERPRINT]}{step}{others})"


def _grow(tree: Tree, origin: Origin, shown: set[Path], depth: int | None) -> None:
    """Adds the commands that made it, each below the one that came after; a path in `shown` is only named.

    depth: how many models and inputs further to follow; None is all.
    """
    branch = tree
    for record in reversed(origin.chain):
        branch = branch.add(_command(record))
        _add_models(branch, record, shown, depth)
        if origin.step is not None:
            _add_inputs(branch, record, shown, depth)


def _follow(branch: Tree, origin: Origin, label: str, shown: set[Path], depth: int | None) -> None:
    again = origin.path in shown
    cut = "  …" if depth == 0 and not again else "  (above)" if again else ""
    below = branch.add(printable_text(f"{label}{cut}"))
    if not again and depth != 0:
        shown.add(origin.path)
        _grow(below, origin, shown, None if depth is None else depth - 1)


def _command(record: Record) -> Text:
    from rich.text import Text

    seconds = record.get("seconds")
    text = Text(printable(str(record.get("stage"))), style="bold cyan")
    text.append(
        f"  {printable(str(record.get('started')))}" + (f", {seconds:.1f} s" if seconds is not None else ""),
        style="dim",
    )
    text.append(f"\n{printable(str(record.get('command')))}")
    if record.get("elsewhere"):
        text.append(f"\nwith {printable(shlex.join(record['elsewhere']))} from the environment or a file")
    return text


def _add_models(branch: Tree, record: Record, shown: set[Path], depth: int | None) -> None:
    for model in models_of(record):
        if model.origin is not None:
            _follow(branch, model.origin, f"{model.role}: {_title(model.origin)}", shown, depth)
            continue
        changed = ", which has changed since" if model.changed else ""
        fingerprint = model.fingerprint[:SHOWN_FINGERPRINT]
        branch.add(printable_text(f"{model.role}: {model.name or '?'}  ({fingerprint}{changed})"))


def _add_inputs(branch: Tree, record: Record, shown: set[Path], depth: int | None) -> None:
    for directory in input_directories(record):
        count = sum(located(record, entry["path"]).parent == directory for entry in record["inputs"])
        label = f"trained on {count} shard{'s' if count > 1 else ''} of {directory}"
        try:
            origin = find_origin(directory)
            _follow(branch, origin, f"{label}  {_identity(origin)}", shown, depth)
        except InputError:
            gone = "" if directory.exists() else ", which is gone"
            branch.add(printable_text(f"{label}{gone}"))


def _show_differences(first: Origin, second: Origin, *, names: tuple[str, str], as_json: bool) -> None:
    import json

    from rich.console import Console

    rows = list(differences(first, second))
    if as_json:
        fields = [{"stage": row.stage, "name": row.name, "first": row.first, "second": row.second} for row in rows]
        print(json.dumps(fields, indent=2))
        return
    if not rows:
        print("nothing differs")
        return
    table = plain_table()
    for heading in ("stage", "", *names):
        table.add_column(printable_text(heading), overflow="fold")
    for row in rows:
        length = SHOWN_FINGERPRINT if row.name.startswith("model ") else None
        values = [str(value)[:length] for value in (row.first, row.second)]
        table.add_row(*(printable_text(text) for text in (row.stage, row.name, *values)))
    Console(highlight=False).print(table)
