"""The page: a single file that contains its style, script and data, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from primecli import __version__
from primecli.report.charts import CHARTS
from primecli.report.curves import all_metrics, chart_series, configuration_differences, stage_seconds
from primecli.report.headlines import headlines, notes
from primecli.report.runs import Run

SCRIPTS = ("base.js", "charts.js", "store.js", "detail.js", "browser.js")
MARK = '<meta name="generator" content="primecli report">'
"""Marks a file as a report, which the next report may overwrite."""

Points = list[tuple[int, float]]


def build_page(runs: Sequence[Run], rollouts: Mapping[str, Any], payload: str) -> str:
    """The whole page.

    rollouts: facts about the rollouts that are shown. payload: their columns in base64; empty if none are shown.
    """
    assets = files("primecli.report") / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    parts = "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts}}})();\n'
    insertions = {
        "title": html.escape(_title(runs)),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": script_json(page_data(runs, rollouts)),
        "payload": payload,
    }
    template = (assets / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: insertions[match[1]], template)


def _title(runs: Sequence[Run]) -> str:
    return f"{', '.join(run.name for run in runs)} · primecli report"


def _hash(text: str) -> str:
    """A source for the page's Content-Security-Policy, under which only this text may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def script_json(value: Any) -> str:
    """JSON that no HTML parser can take for markup: `<`, `>` and `&` are escaped.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page_data(runs: Sequence[Run], rollouts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in the page except the rollouts themselves."""
    charts: list[dict[str, Any]] = []
    for chart in CHARTS:
        series = [
            {"run": line.run, "label": line.label, "style": line.style, "points": points(line.values)}
            for line in chart_series(chart, runs)
        ]
        if series:
            head = {name: getattr(chart, name) for name in ("name", "title", "section", "unit", "caption")}
            charts.append({**head, "series": series})
    return {
        "title": _title(runs),
        "version": __version__,
        "made": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "runs": [
            {"name": run.name, "path": str(run.path), "rollouts": run.total_rollouts(), "seconds": run.total_seconds()}
            for run in runs
        ],
        "headlines": [
            {
                "label": line.label,
                "unit": line.unit,
                "runs": [_headline(values, line.change) for values in line.values],
            }
            for line in headlines(runs)
        ],
        "charts": [*charts, *_seconds_chart(runs)],
        "metrics": {
            name: [points(values) for values in values_by_run] for name, values_by_run in all_metrics(runs).items()
        },
        "differences": [
            [difference.stage, difference.option, *difference.values] for difference in configuration_differences(runs)
        ],
        "notes": notes(runs),
        "rollouts": dict(rollouts),
    }


def points(values: Mapping[int, float]) -> Points:
    """Values by iteration, in order, to seven significant digits."""
    return [(iteration, float(f"{values[iteration]:.7g}")) for iteration in sorted(values)]


def _headline(values: Mapping[int, float], change: bool) -> dict[str, Any] | None:
    if not values:
        return None
    ordered = points(values)
    first = ordered[0][1] if change and len(ordered) > 1 else None
    return {"last": ordered[-1][1], "first": first, "points": ordered}


def _seconds_chart(runs: Sequence[Run]) -> list[dict[str, Any]]:
    by_run = [stage_seconds(run) for run in runs]
    stages = list(dict.fromkeys(stage for seconds in by_run for stage in seconds))
    series = [
        {"run": run, "label": stage, "style": style, "points": points(by_run[run][stage])}
        for run in range(len(runs))
        for style, stage in enumerate(stages)
        if stage in by_run[run]
    ]
    caption = (
        "Without the time spent waiting for the previous stage. Stages overlap, so the wall-clock time is shorter."
    )
    head = {"name": "seconds", "title": "Seconds by stage", "section": "Cost", "unit": "seconds", "caption": caption}
    return [{**head, "bars": True, "series": series}] if series else []
