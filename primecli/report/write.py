"""`primecli report`: which runs it is about, and the page or the Markdown that is written."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError, UsageError
from primecli.pipeline.progress import say
from primecli.printable import printable

if TYPE_CHECKING:
    from primecli.report.rollouts import Choice
    from primecli.report.runs import Run

DEFAULT_PAGE = Path("report.html")


class Format(StrEnum):
    """What a report is written as."""

    html = "html"
    md = "md"


def write_report(
    runs: Sequence[str],
    *,
    out: Path | None,
    format: Format,
    max_rollouts: int,
    tokenizer: str | None,
    compress: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Writes a report of some runs.

    runs: their directories or globs, or NAME=DIR. out: the file; None for report.html, or for stdout where the format
    is Markdown. max_rollouts: how many the page shows, in whole groups. tokenizer: spells the tokens; None for that of
    the model that sampled. compress: gzip the rollouts in the page. force: overwrite a file that is not a report.

    A shard that is damaged is named on stderr and on the page, which shows the rest. Raises UsageError for a run given
    twice and for a directory as `out`, InputError for a directory that is not a run, PrimecliError for a file that must
    not be overwritten.
    """
    from primecli.report import markdown, page

    selected = _find_runs(runs)
    if format is Format.md:
        mark, text = markdown.MARK, markdown.markdown(selected)
    else:
        mark, out = page.MARK, out or DEFAULT_PAGE
        _check_target(out, mark, force)  # before the work, not only after it
        text = _page(selected, max_rollouts, tokenizer, compress, quiet)
    if out is None:
        print(printable(text), end="")
        return
    _write(out, text, mark, force)
    if not quiet:
        count = len(selected)
        say("report", f"{count} run{'s' if count > 1 else ''}, {_size(len(text.encode()))} -> {out}")


def _find_runs(sources: Sequence[str]) -> list[Run]:
    """The runs that the command line names; what is wrong with their summaries goes to stderr."""
    from primecli.report.runs import find_run

    runs = [find_run(path, name) for source in sources for name, path in _directories(source)]
    _make_distinct(runs)
    for run in runs:
        for problem in run.problems:
            say("report", problem)
    return runs


def _directories(source: str) -> list[tuple[str | None, Path]]:
    """NAME=DIR as name and directory, unless a directory has that whole name; else the matches of a path or a glob."""
    from primecli.pipeline.inputs import expand_path

    name, equals, directory = source.partition("=")
    if equals and name and "/" not in name and not Path(source).is_dir():
        return [(name, Path(directory))]
    return [(None, path) for path in expand_path(source)]


def _make_distinct(runs: Sequence[Run]) -> None:
    """Names runs by their paths where they would share a name. Raises UsageError for a run that is given twice."""
    paths = [run.path.resolve() for run in runs]
    names = [run.name for run in runs]
    if len(set(paths)) < len(paths):
        raise UsageError(f"{next(run.path for run in runs if paths.count(run.path.resolve()) > 1)} is given twice")
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)


def _page(runs: Sequence[Run], limit: int, tokenizer: str | None, compress: bool, quiet: bool) -> str:
    from primecli.models.token_text import Spellers
    from primecli.report.page import build_page
    from primecli.report.rollouts import choose, embed

    known = {id(run): len(run.problems) for run in runs}
    choice = choose(runs, limit)
    embedding = embed(choice, Spellers(tokenizer), runs)
    for problem in (problem for run in runs for problem in run.problems[known[id(run)] :]):
        say("report", f"{problem}; the page shows the rest")
    about: dict[str, Any] = {
        "shown": choice.rollouts,
        "encoding": "gzip" if compress else "plain",
        "note": _note(choice, limit),
    }
    missing = list(embedding.spellers.missing)
    unspelled = len(embedding) - embedding.spelled
    if missing and not quiet:
        say(
            "report",
            f"no tokenizer for {', '.join(missing)}: its responses are shown as text (name one with --tokenizer)",
        )
    elif unspelled and not quiet:
        say("report", f"{unspelled} responses are shown as text: the tokenizer does not spell them")
    return build_page(runs, about, embedding.encode(compress=compress) if choice.rollouts else "")


def _note(choice: Choice, limit: int) -> str:
    """What the page says about which rollouts it shows."""
    if not limit:
        return "Left out: the page was made with --max-rollouts 0."
    if not choice.available:
        return "No shards are left to take rollouts from."
    if choice.rollouts == choice.available:
        return f"All {choice.rollouts:,} rollouts in the remaining shards."
    return (
        f"{choice.rollouts:,} of {choice.available:,} rollouts: whole groups, taken evenly from all iterations "
        f"(--max-rollouts {limit})."
    )


def _check_target(target: Path, mark: str, force: bool) -> None:
    """Refuses to overwrite a file that is not a report of the same format."""
    if target.is_dir():
        raise UsageError(f"--out {target} is a directory", "name a file")
    if target.exists() and not target.is_file():  # a pipe would wait for its other end, and a device would be replaced
        raise UsageError(f"--out {target} is not a file", "name a file")
    if not target.exists() or force:
        return
    try:
        with open(target, encoding="utf-8", errors="replace") as file:
            head = file.read(4096)
    except OSError as error:
        raise PrimecliError(f"{target} cannot be read: {error.strerror}", "choose another --out") from error
    if mark not in head:
        raise PrimecliError(
            f"{target} exists and is not a report in this format", "choose another --out, or overwrite it with --force"
        )


def _write(target: Path, text: str, mark: str, force: bool) -> None:
    from primecli.files import make_directory, remove_abandoned, write_text_atomically

    _check_target(target, mark, force)
    make_directory(target.parent)
    remove_abandoned(target)
    write_text_atomically(target, text)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
