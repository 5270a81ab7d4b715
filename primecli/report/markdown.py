"""The report as Markdown: tables and sparklines, to be pasted into a pull request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from primecli.pipeline.progress import duration
from primecli.report.curves import configuration_differences
from primecli.report.headlines import Headline, headlines, notes
from primecli.report.runs import TRAINING, Run

MARK = "<!-- primecli report -->"
"""By this a file is known as a report, which the next one may replace."""

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24
LEAST_SPAN = 0.005  # of the largest value: less is drawn flat, so that noise does not look like a trend
MOST_ROWS = 25  # of the table by iteration; longer runs are thinned evenly, first and last kept
COLUMNS = (
    ("accuracy, training", "verify", "accuracy"),
    ("PRM pair accuracy", "update-prm", "pair_accuracy_before"),
    ("PRM reward, right", "update-prm", "reward_right_before"),
    ("PRM reward, wrong", "update-prm", "reward_wrong_before"),
    ("entropy", "update-policy", "entropy"),
    ("KL of the update", "update-policy", "kl_update"),
    ("response length", "generate", "response_tokens"),
    ("truncated", "generate", "truncated"),
)
"""The table by iteration: heading, stage, metric."""


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Values as blocks, from the lowest to the highest of them; longer lists are thinned.

    >>> sparkline([0.0, 1.0, 0.5])
    '▁█▅'
    """
    shown = [values[index] for index in thinned(len(values), width)]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high - low < LEAST_SPAN * max(abs(low), abs(high)) or high == low:
        return BLOCKS[3] * len(shown)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in shown)


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of 0 … count-1, evenly, the first and the last among them.

    >>> thinned(5, 3)
    [0, 2, 4]
    """
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def show(value: float | None, *, signed: bool = False) -> str:
    """A number to four significant digits; empty for None."""
    if value is None:
        return ""
    return f"{value:+.4g}" if signed else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in one cell.

    >>> escape("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|*_`[]":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def markdown(runs: Sequence[Run]) -> str:
    """The whole report."""
    names = ", ".join(escape(run.name) for run in runs)
    parts = [MARK, f"### {names}", *(f"> {escape(note)}\n" for note in notes(runs)), _summary(runs)]
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += [_by_iteration(run, several=len(runs) > 1) for run in runs]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    align = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows])


def _summary(runs: Sequence[Run]) -> str:
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
    found = [values[iteration] for iteration in sorted(values)]
    last = duration(found[-1]) if line.unit == "s" else show(found[-1])
    if not line.change:
        return "", last, "", ""
    return show(found[0]), last, show(found[-1] - found[0], signed=True), sparkline(found)


def _differences(runs: Sequence[Run]) -> str:
    rows = [
        [
            escape(stage),
            escape(key),
            *(escape(value if isinstance(value, str) else json.dumps(value)) for value in values),
        ]
        for stage, key, values in configuration_differences(runs)
    ]
    if not rows:
        return ""
    return "**What differs in configuration**\n\n" + _table(
        ["stage", "option", *(escape(run.name) for run in runs)], rows, left=2
    )


def _by_iteration(run: Run, *, several: bool) -> str:
    evaluations = [purpose for purpose in run.purposes() if purpose != TRAINING]
    columns = [(f"accuracy, {name}", run.series("verify", "accuracy", name)) for name in evaluations]
    columns += [(label, run.series(stage, metric)) for label, stage, metric in COLUMNS]
    columns = [(label, values) for label, values in columns if values]
    rollouts = run.rollouts()
    iterations = [iteration for iteration in run.iterations() if any(iteration in values for _, values in columns)]
    if not iterations:
        return ""
    kept = [iterations[index] for index in thinned(len(iterations), MOST_ROWS)]
    rows = [
        [str(iteration), f"{rollouts[iteration]:,}", *(show(values.get(iteration)) for _, values in columns)]
        for iteration in kept
    ]
    table = _table(["iteration", "rollouts", *(escape(name) for name, _ in columns)], rows, left=0)
    title = f"{escape(run.name)}: by iteration" if several else "By iteration"
    return f"<details><summary>{title}</summary>\n\n{table}\n\n</details>"
