from __future__ import annotations

import re
from pathlib import Path

from primecli.report.charts import CHARTS


def test_every_charted_metric_is_reported_by_a_stage() -> None:
    """Looks for the names in the code of the stages, so that renaming a metric there fails here."""
    root = Path(__file__).parents[2] / "primecli"
    files = [path for path in root.rglob("*.py") if "report" not in path.relative_to(root).parts]
    source = "\n".join(path.read_text() for path in files)
    for line in (line for chart in CHARTS for line in chart.lines):
        stem = re.sub("_(before|after)$", "", line.metric)
        stem = re.sub("^.*(_variance_share)$", r"\1", stem)
        assert re.search(rf'["}}]{stem}["_{{]', source), line.metric
