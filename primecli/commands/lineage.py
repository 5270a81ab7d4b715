"""`primecli lineage`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.options import Option

if TYPE_CHECKING:
    from rich.tree import Tree

    from primecli.analysis.lineage import Made, Record


UNLIMITED = 100_000  # columns, where no terminal limits them: a command stays on its line


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
    import json

    from primecli.analysis import lineage as tracing
    from primecli.errors import UsageError
    from primecli.pipeline.inputs import named_paths

    if replay and diff is not None:
        raise UsageError("--replay and --diff are asked for at once", "choose one")
    places = list(named_paths(made or ()))
    if (replay or diff is not None) and len(places) != 1:
        raise UsageError(f"--{'replay' if replay else 'diff'} is of one shard or checkpoint, not of {len(places)}")
    for place in places:
        found = tracing.look_up(place)
        if replay:
            print(tracing.replay(found))
        elif diff is not None:
            _show_differences(found, tracing.look_up(diff), (str(place), str(diff)), as_json)
        elif as_json:
            chain = [dict(record) for record in found.chain]
            print(json.dumps({"path": str(found.path), "fingerprint": found.fingerprint, "chain": chain}, indent=2))
        else:
            _show(found, depth)


def _show(made: Made, depth: int | None) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from primecli.models.token_text import printable

    tree = Tree(Text(printable(_title(made)), style="bold"), guide_style="dim")
    _grow(tree, made, {made.path}, depth)
    Console(highlight=False, width=None if sys.stdout.isatty() else UNLIMITED).print(tree)


def _title(made: Made) -> str:
    return f"{made.path}  {_identity(made)}"


def _identity(made: Made) -> str:
    step = "" if made.step is None else f", step {made.step}"
    others = f", one of {made.alike} made alike" if made.alike > 1 else ""
    others += f"; {made.unlike} beside it made in another way" if made.unlike else ""
    return f"({made.fingerprint[:12]}{step}{others})"


def _grow(tree: Tree, made: Made, shown: set[Path], depth: int | None) -> None:
    """Adds the commands that made it, each below the one that came after; what is shown already is only named.

    depth: how many models and inputs further to follow; None is all.
    """
    place = tree
    for record in reversed(made.chain):
        place = place.add(_command(record))
        _add_models(place, record, shown, depth)
        if made.step is not None:
            _add_inputs(place, record, shown, depth)


def _follow(place: Tree, made: Made, label: str, shown: set[Path], depth: int | None) -> None:
    from rich.text import Text

    from primecli.models.token_text import printable

    again = made.path in shown
    cut = "  …" if depth == 0 and not again else "  (above)" if again else ""
    branch = place.add(Text(printable(f"{label}{cut}")))
    if not again and depth != 0:
        shown.add(made.path)
        _grow(branch, made, shown, None if depth is None else depth - 1)


def _command(record: Record) -> Any:
    from rich.text import Text

    from primecli.models.token_text import printable

    seconds = record.get("seconds")
    text = Text(str(record.get("stage")), style="bold cyan")
    text.append(f"  {record.get('started')}" + (f", {seconds:.1f} s" if seconds is not None else ""), style="dim")
    text.append(f"\n{printable(str(record.get('command')))}")
    if record.get("elsewhere"):
        text.append(f"\nwith {shlex.join(record['elsewhere'])} from variables or a file")
    return text


def _add_models(place: Tree, record: Record, shown: set[Path], depth: int | None) -> None:
    from rich.text import Text

    from primecli.analysis.lineage import models_of
    from primecli.models.token_text import printable

    for model in models_of(record):
        if model.made is not None:
            _follow(place, model.made, f"{model.role}: {_title(model.made)}", shown, depth)
            continue
        changed = ", no longer the same there" if model.changed else ""
        place.add(Text(printable(f"{model.role}: {model.name or '?'}  ({model.fingerprint[:12]}{changed})")))


def _add_inputs(place: Tree, record: Record, shown: set[Path], depth: int | None) -> None:
    from rich.text import Text

    from primecli.analysis.lineage import input_directories, look_up
    from primecli.errors import InputError
    from primecli.models.token_text import printable

    for directory in input_directories(record):
        count = sum(Path(entry["path"]).parent == directory for entry in record["inputs"])
        label = f"trained on {count} shard{'s' if count > 1 else ''} of {directory}"
        try:
            source = look_up(directory)
            _follow(place, source, f"{label}  {_identity(source)}", shown, depth)
        except InputError:
            gone = "" if directory.exists() else ", no longer here"
            place.add(Text(printable(f"{label}{gone}")))


def _show_differences(first: Made, second: Made, names: tuple[str, str], as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from primecli.analysis.lineage import differences
    from primecli.models.token_text import printable

    found = list(differences(first, second))
    if as_json:
        rows = [{"stage": row.stage, "name": row.name, "first": row.first, "second": row.second} for row in found]
        print(json.dumps(rows, indent=2))
        return
    if not found:
        print("nothing differs")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("stage", "", *names):
        table.add_column(Text(printable(heading)), overflow="fold")
    for row in found:
        values = [str(value)[: 12 if row.name.startswith("model ") else None] for value in (row.first, row.second)]
        table.add_row(*(Text(printable(text)) for text in (row.stage, row.name, *values)))
    Console(highlight=False).print(table)
