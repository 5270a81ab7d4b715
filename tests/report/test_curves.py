from __future__ import annotations

import re
from pathlib import Path

import pytest

from primecli.report.curves import CHARTS, all_metrics, chart_series, configuration_differences, stage_seconds
from primecli.report.runs import find_run
from tests.made_runs import make_run, write_summary


def test_a_chart_has_a_line_a_run_and_an_evaluation_of_its_own(tmp_path: Path) -> None:
    runs = [find_run(make_run(tmp_path / name, iterations=2)) for name in ("a", "b")]
    write_summary(tmp_path / "b" / "eval" / "gsm8k" / "2" / "verify", "verify", metrics={"accuracy": 0.75})
    runs[1] = find_run(tmp_path / "b")
    lines = chart_series(next(chart for chart in CHARTS if chart.name == "accuracy"), runs)
    assert [(line.run, line.label) for line in lines] == [
        (0, "eval"),
        (0, "training"),
        (1, "eval"),
        (1, "eval/gsm8k"),
        (1, "training"),
    ]
    assert lines[3].values == {2: 0.75}
    styles = {line.label: line.style for line in lines}
    assert len(set(styles.values())) == 3  # a line looks the same in every run


def test_every_chart_is_of_metrics_that_stages_report() -> None:
    """The names stand in the code of the stages; a metric that is renamed there is noticed here."""
    root = Path(__file__).parents[2] / "primecli"
    files = [path for path in root.rglob("*.py") if "report" not in path.relative_to(root).parts]
    source = "\n".join(path.read_text() for path in files)
    for line in (line for chart in CHARTS for line in chart.lines):
        stem = re.sub("_(before|after)$", "", line.metric)
        stem = re.sub("^.*(_variance_share)$", r"\1", stem)
        assert re.search(rf'["}}]{stem}["_{{]', source), line.metric


def test_seconds_add_up_by_stage_with_evaluations_apart(tmp_path: Path) -> None:
    found = stage_seconds(find_run(make_run(tmp_path, iterations=2)))
    assert list(found) == [
        "generate",
        "verify",
        "filter",
        "update-prm",
        "compute-advantages",
        "update-policy",
        "evaluation",
    ]
    assert found["verify"] == {1: 10.0, 2: 10.0}
    assert found["evaluation"] == {0: 20.0, 2: 20.0}


def test_every_metric_is_there_by_name(tmp_path: Path) -> None:
    found = all_metrics([find_run(make_run(tmp_path, iterations=2))])
    assert found["update-policy kl_update"] == [{1: pytest.approx(0.01), 2: pytest.approx(0.02)}]
    assert found["verify accuracy (eval)"] == [{0: pytest.approx(0.2), 2: pytest.approx(0.4)}]


def test_differences_are_options_and_stages_and_no_paths(tmp_path: Path) -> None:
    for name, rate in (("a", 1e-4), ("b", 2e-4)):
        config = {"lr": rate, "clip": 0.2, "policy": f"{name}/policy/0"}
        write_summary(tmp_path / name / "policy" / "1", "update-policy", config=config)
    write_summary(tmp_path / "b" / "prm" / "1", "update-prm")
    runs = [find_run(tmp_path / name) for name in ("a", "b")]
    assert configuration_differences(runs) == [
        ("update-prm", "ran", ["no", "yes"]),
        ("update-policy", "lr", [1e-4, 2e-4]),
    ]
    assert configuration_differences(runs[:1]) == []
