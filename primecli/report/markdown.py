"""The report as Markdown: tables and sparklines to paste into a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from primecli.pipeline.progress import duration
from primecli.report.curves import configuration_differences
from primecli.report.headlines import Headline, headlines, notes
from primecli.report.runs import Run

MARK = "<!-- primecli report -->"
"""Marks a file as a report, which the next report may overwrite."""

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24
LEAST_SPAN = 0.005  # of the largest value; a smaller span is drawn flat, so that noise does not look like a trend
MOST_ROWS = 25  # of the table by iteration; longer runs are thinned evenly, keeping first and last
COLUMNS = (
    ("accuracy, training", "verify", "accuracy"),
    ("PRM pair accuracy", "update-prm", "pair_accuracy_before"),
    ("trust in the PRM", "compute-advantages", "process_trust"),
    ("process share", "compute-advantages", "process_share"),
    ("PRM reward, correct", "update-prm", "reward_right_before"),
    ("PRM reward, wrong", "update-prm", "reward_wrong_before"),
    ("entropy", "update-policy", "entropy"),
    ("KL of the update", "update-policy", "kl_update"),
    ("response length", "generate", "response_tokens"),
    ("truncated", "generate", "truncated"),
)
"""Of the table by iteration: heading, stage and metric."""


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Values as blocks, scaled from the lowest to the highest; more than `width` values are thinned.

    >>> sparkline([0.0, 1.0, 0.5])
    '▁█▅'
    """
    shown = [values[index] for index in thinned(len(values), width)]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high - low < LEAST_SPAN * max(abs(low), abs(high)) or high == low:
        return BLOCKS[3] * len(shown)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in shown)


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 … count-1, evenly spaced, the first and the last among them.

    >>> thinned(5, 3)
    [0, 2, 4]
    """
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def show(value: float | None, *, signed: bool = False) -> str:
    """A number to four significant digits; empty for None."""
    if value is None:
        return ""
    return f"{value:+.4g}" if signed else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def escape(text: str) -> str:
    """Text that Markdown shows literally, in a single table cell.

    >>> escape("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\|*_`[]":
        plain = plain.replace(character, f"\\{character}")
    return plain


def markdown(runs: Sequence[Run]) -> str:
    """The whole report."""
    names = ", ".join(escape(run.name) for run in runs)
    parts = [MARK, f"### {names}", *(f"> {escape(note)}\n" for note in notes(runs)), _headlines(runs)]
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += [_by_iteration(run, several=len(runs) > 1) for run in runs]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned to the left, the others to the right."""
    align = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows])


def _headlines(runs: Sequence[Run]) -> str:
    lines = headlines(runs)
    if len(runs) == 1:
        rows = [[escape(line.label), *_cells(line, line.values[0])] for line in lines]
        return _table(["", "first", "last", "change", "by iteration"], rows)
    rows = []
    for line in lines:
        cells = [_cells(line, values) for values in line.values]
        rows.append(
            [escape(line.label), *(" ".join(part for part in (last, trend) if part) for _, last, _, trend in cells)]
        )
    return _table(["", *(escape(run.name) for run in runs)], rows)


def _cells(line: Headline, values: Mapping[int, float]) -> tuple[str, str, str, str]:
    """First value, last value, change and sparkline."""
    if not values:
        return "", "", "", ""
    ordered = [values[iteration] for iteration in sorted(values)]
    last = duration(ordered[-1]) if line.unit == "s" else show(ordered[-1])
    if not line.change:
        return "", last, "", ""
    return show(ordered[0]), last, show(ordered[-1] - ordered[0], signed=True), sparkline(ordered)


def _differences(runs: Sequence[Run]) -> str:
    rows = [
        [escape(difference.stage), escape(difference.option), *map(escape, difference.values)]
        for difference in configuration_differences(runs)
    ]
    if not rows:
        return ""
    head = ["stage", "option", *(escape(run.name) for run in runs)]
    return "**Differences in configuration**\n\n" + _table(head, rows, left=2)


def _by_iteration(run: Run, *, several: bool) -> str:
    columns = [(f"accuracy, {name}", run.series("verify", "accuracy", name)) for name in run.evaluations()]
    columns += [(heading, run.series(stage, metric)) for heading, stage, metric in COLUMNS]
    columns = [(heading, values) for heading, values in columns if values]
    rollouts = run.total_rollouts()
    iterations = [iteration for iteration in run.iterations() if any(iteration in values for _, values in columns)]
    if not iterations:
        return ""
    kept = [iterations[index] for index in thinned(len(iterations), MOST_ROWS)]
    rows = [
        [str(iteration), f"{rollouts[iteration]:,}", *(show(values.get(iteration)) for _, values in columns)]
        for iteration in kept
    ]
    table = _table(["iteration", "rollouts", *(escape(heading) for heading, _ in columns)], rows, left=0)
    title = f"{escape(run.name)}: by iteration" if several else "By iteration"
    return f"<details><summary>{title}</summary>\n\n{table}\n\n</details>"
