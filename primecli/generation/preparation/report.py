"""What `prepare` says: a table on stderr, or JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.printable import clipped, one_line

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 300  # characters of an example
EXAMPLES = 3  # of each reason in the table; the JSON has more

MEANING = {
    "empty": "the prompt has no words",
    "too_long": "the prompt has more words than --max-words",
    "no_answer": "there is nothing to grade responses with",
    "unreadable_answer": "the verifier cannot read the answer",
    "multiple_choice": "options are listed, or their list is missing",
    "figure": "the text refers to a figure that it does not hold",
    "proof": "a proof is asked for, and no value",
    "duplicate": "repeats another prompt, exactly or nearly",
    "conflict": "repeats another prompt, with another answer",
    "contaminated": "holds a prompt of a benchmark",
    "not_sampled": "has no pass rate, and --keep was given",
    "too_hard": "its pass rate is below --keep",
    "too_easy": "its pass rate is above --keep",
}


def show(summary: Mapping[str, Any], out: Path, *, as_json: bool, quiet: bool) -> None:
    """Shows the summary of a prepared file. out: the file."""
    if as_json:
        print(json.dumps({"out": str(out), **summary}, indent=2))
    if quiet or as_json:
        return
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False)
    _reasons(console, summary)
    _benchmarks(console, summary)
    for line in _lines(summary):
        console.print(clipped(one_line(line)), markup=False, soft_wrap=True)
    console.print(_closing(summary, out), markup=False, soft_wrap=True)


def _reasons(console: Console, summary: Mapping[str, Any]) -> None:
    from rich.table import Table

    if not summary["reasons"]:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("mark", no_wrap=True)
    table.add_column("prompts", justify="right", no_wrap=True)
    table.add_column("meaning, and the first examples")
    for reason, count in summary["reasons"].items():
        shown = [clipped(one_line(text), LONGEST) for text in summary["examples"].get(reason, [])[:EXAMPLES]]
        table.add_row(reason, f"{count:,}", "\n".join([MEANING[reason], *(f"  {text}" for text in shown)]))
    console.print(table)


def _benchmarks(console: Console, summary: Mapping[str, Any]) -> None:
    for each in summary["benchmarks"]:
        line = (
            f"{each['file']}: {each['found']:,} of its {each['prompts']:,} prompts are in {each['in_prompts']:,} here"
        )
        line += f"; {_rows(each['unreadable'])} of it cannot be read" if each["unreadable"] else ""
        console.print(clipped(one_line(line)), markup=False, soft_wrap=True)


def _lines(summary: Mapping[str, Any]) -> list[str]:
    """What else there is to say."""
    lines = []
    for file in summary["files"]:
        left_out = f", {file['unreadable']:,} left out as unreadable" if file["unreadable"] else ""
        lines.append(f"{file['file']}: {_rows(file['rows'])}, prompts in the column {file['prompt_column']}{left_out}")
    lines += [f"  {text}" for text in summary["unreadable"][:EXAMPLES]]
    for each in summary["common"]:
        lines.append(
            f"not compared, since {each['prompts']:,} of {each['of']:,} prompts of {each['data_source']} have it: "
            f"wording such as “{each['phrase']}”"
        )
    rates = summary["pass_rates"]
    if rates:
        others = f"; {rates['of_other_prompts']:,} are of other prompts" if rates["of_other_prompts"] else ""
        ungraded = f"; {rates['ungraded_responses']:,} responses are ungraded" if rates["ungraded_responses"] else ""
        lines.append(f"pass rates of {rates['prompts']:,} prompts, {rates['mean']:.3f} on average{others}{ungraded}")
    for name, count in summary["unchecked_verifiers"].items():
        lines.append(
            f"{count:,} prompts are graded by the verifier {name}: whether it can read their answers is not checked"
        )
    return [*lines, *summary["notes"]]


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _closing(summary: Mapping[str, Any], out: Path) -> str:
    marked = summary["prompts"] - summary["unmarked"]
    dropped = summary["prompts"] - summary["written"]
    what = f"{dropped:,} dropped" if dropped else "none dropped"
    return f"primecli prepare: {summary['prompts']:,} prompts, {marked:,} with a mark, {what} -> {out}"
