from __future__ import annotations

from pathlib import Path

import pytest

from primecli.report.charts import CHARTS
from primecli.report.curves import (
    Difference,
    all_metrics,
    chart_series,
    configuration_differences,
    stage_seconds,
)
from primecli.report.runs import find_run
from tests.made_runs import make_run, write_summary


def test_a_chart_has_a_line_per_run_and_per_evaluation(tmp_path: Path) -> None:
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


def test_seconds_are_summed_by_stage_and_apart_for_evaluations(tmp_path: Path) -> None:
    seconds = stage_seconds(find_run(make_run(tmp_path, iterations=2)))
    assert list(seconds) == [
        "generate",
        "verify",
        "filter",
        "update-prm",
        "compute-advantages",
        "update-policy",
        "evaluation",
    ]
    assert seconds["verify"] == {1: 10.0, 2: 10.0}
    assert seconds["evaluation"] == {0: 20.0, 2: 20.0}


def test_every_metric_is_found_by_its_name(tmp_path: Path) -> None:
    metrics = all_metrics([find_run(make_run(tmp_path, iterations=2))])
    assert metrics["update-policy kl_update"] == [{1: pytest.approx(0.01), 2: pytest.approx(0.02)}]
    assert metrics["verify accuracy (eval)"] == [{0: pytest.approx(0.2), 2: pytest.approx(0.4)}]


def test_runs_differ_in_options_and_stages_but_not_in_paths(tmp_path: Path) -> None:
    for name, rate in (("a", 1e-4), ("b", 2e-4)):
        config = {"lr": rate, "clip": 0.2, "policy": f"{name}/policy/0"}
        write_summary(tmp_path / name / "policy" / "1", "update-policy", config=config)
    write_summary(tmp_path / "b" / "prm" / "1", "update-prm")
    runs = [find_run(tmp_path / name) for name in ("a", "b")]
    assert configuration_differences(runs) == [
        Difference("update-prm", "ran", ("no", "yes")),
        Difference("update-policy", "lr", ("0.0001", "0.0002")),
    ]
    assert configuration_differences(runs[:1]) == []
