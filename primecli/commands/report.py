"""`primecli report`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.options import Option, Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from primecli.report.runs import Run


class Format(StrEnum):
    """What a report is written as."""

    html = "html"
    md = "md"


def report(
    runs: Annotated[
        tuple[str, ...],
        Option("Directories of runs, or globs; NAME=DIR gives one another name.", argument=True, metavar="RUNS..."),
    ],
    out: Annotated[
        Path | None, Option("The file to write.  [default: report.html; with --format md, stdout]", metavar="FILE")
    ] = None,
    format: Annotated[Format, Option("A page for a browser, or Markdown for a pull request.")] = Format.html,
    max_rollouts: Annotated[
        int, Option("Rollouts in the page, in whole groups, taken evenly from all iterations; 0 is none.", min=0)
    ] = 2000,
    tokenizer: Annotated[
        str | None,
        Option(
            "Spells the tokens.  [default: that of the model that sampled, where it is still there]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    compress: Annotated[
        bool, Option("Pack the rollouts in the page with gzip.", flags="--compress/--no-compress")
    ] = True,
    force: Annotated[bool, Option("Overwrite a file that is no report.")] = False,
    quiet: Quiet = False,
) -> None:
    """A run is a directory with _summary.json files somewhere below: those that the stages have left. The number in a
    path is the iteration (runs/a/3/verify, runs/a/policy/3), and what stands below a directory called eval, test,
    heldout or val is an evaluation. Curves come from the summaries alone, rollouts from the shards that are left.

    The page loads nothing: one file, to be opened, sent or archived. It compares runs, and shows rollouts with what
    each token was rewarded for. Runs that are broken or still going on are shown as far as they have come.

    Example:

      primecli report runs/a runs/b --out report.html
    """
    from primecli.pipeline.progress import say
    from primecli.report.runs import find_run

    named = [one for text in runs for one in _named(text)]
    found = [find_run(path, name) for name, path in named]
    _distinct_names(found)
    for run in found:
        for problem in run.problems:
            say("report", problem)
    if format is Format.md:
        from primecli.report.markdown import MARK, markdown

        text, target = markdown(found), out
    else:
        from primecli.report.page import MARK

        target = out or Path("report.html")
        _check_target(target, MARK, force)
        text = _page(found, max_rollouts, tokenizer, compress, quiet)
    if target is None:
        print(text, end="")
        return
    _write(target, text, MARK, force)
    if not quiet:
        say("report", f"{len(found)} run{'s' if len(found) > 1 else ''}, {_size(len(text.encode()))} -> {target}")


def _named(text: str) -> list[tuple[str | None, Path]]:
    """NAME=DIR, or the directories of a path or a glob, where one is there of the whole name or no name is given."""
    from primecli.pipeline.inputs import expand_path

    name, equals, rest = text.partition("=")
    if equals and name and "/" not in name and not Path(text).is_dir():
        return [(name, Path(rest))]
    return [(None, place) for place in expand_path(text)]


def _distinct_names(runs: Sequence[Run]) -> None:
    from primecli.errors import UsageError

    paths = [run.path.resolve() for run in runs]
    names = [run.name for run in runs]
    if len(set(paths)) < len(paths):
        raise UsageError(f"{next(run.path for run in runs if paths.count(run.path.resolve()) > 1)} is named twice")
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)


def _page(runs: Sequence[Run], limit: int, tokenizer: str | None, compress: bool, quiet: bool) -> str:
    from primecli.models.token_text import Spellers
    from primecli.pipeline.progress import say
    from primecli.report.page import build_page
    from primecli.report.rollouts import choose, embed

    choice = choose(runs, limit)
    embedding = embed(choice, Spellers(tokenizer))
    missing = list(embedding.spellers.missing)
    about: dict[str, Any] = {
        "shown": choice.rollouts,
        "encoding": "gzip" if compress else "plain",
        "note": _note(choice.rollouts, choice.there, limit),
    }
    if missing and not quiet:
        say(
            "report",
            f"no tokenizer of {', '.join(missing)}: its responses are shown as text (name one with --tokenizer)",
        )
    elif embedding.spelled < len(embedding) and not quiet:
        count = len(embedding) - embedding.spelled
        say("report", f"{count} responses are shown as text: the tokenizer does not spell them")
    return build_page(runs, about, embedding.encode(compress=compress) if choice.rollouts else "")


def _note(shown: int, there: int, limit: int) -> str:
    if not limit:
        return "Left out: the page was made with --max-rollouts 0."
    if not there:
        return "There are no shards left to show rollouts from."
    if shown == there:
        return f"All {there:,} rollouts of the shards that are there."
    return f"{shown:,} of {there:,} rollouts: whole groups, taken evenly from all iterations (--max-rollouts {limit})."


def _check_target(target: Path, mark: str, force: bool) -> None:
    """Refuses to overwrite what is no report, before the work is done."""
    from primecli.errors import PrimecliError, UsageError

    if target.is_dir():
        raise UsageError(f"--out {target} is a directory; a file is meant")
    if not target.exists() or force:
        return
    try:
        with open(target, encoding="utf-8", errors="replace") as file:
            head = file.read(4096)
    except OSError as error:
        raise PrimecliError(f"{target} cannot be read: {error.strerror}", "choose another --out") from error
    if mark not in head:
        raise PrimecliError(f"{target} exists and is no report", "choose another --out, or overwrite it with --force")


def _write(target: Path, text: str, mark: str, force: bool) -> None:
    from primecli.files import make_directory, write_atomically

    _check_target(target, mark, force)
    make_directory(target.parent)
    write_atomically(target, lambda file: _write_text(file, text))


def _write_text(file: Any, text: str) -> None:
    file.write(text.encode())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
