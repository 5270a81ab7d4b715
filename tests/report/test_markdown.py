from __future__ import annotations

import re
from pathlib import Path

from primecli.report.markdown import MARK, markdown, sparkline
from primecli.report.runs import find_run
from tests.made_runs import make_run, write_summary


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table; checks that all rows have the same number of cells."""
    parsed = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, block
        parsed.append([[cell.strip() for cell in row] for row in rows])
    return parsed


def test_one_run(tmp_path: Path) -> None:
    text = markdown([find_run(make_run(tmp_path / "run"))])
    assert text.startswith(MARK)
    summary, by_iteration = tables(text)
    assert ["accuracy, training", "0.1", "0.3", "+0.2", "▁▅█"] in summary  # 0.2 is the middle, and rounds up
    assert ["accuracy, eval", "0.2", "0.5", "+0.3", "▁█"] in summary
    head = by_iteration[0]
    last = dict(zip(head, by_iteration[-1], strict=True))
    assert (last["iteration"], last["rollouts"], last["PRM pair accuracy"], last["entropy"]) == (
        "3",
        "48",
        "0.8",
        "0.3333",
    )


def test_trust_in_the_prm_is_in_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    metrics = {"process_trust": 0.42, "process_share": 0.21, "prm_pair_accuracy": 0.71}
    write_summary(run / "2" / "compute-advantages", "compute-advantages", metrics=metrics)
    _, by_iteration = tables(markdown([find_run(run)]))
    last = dict(zip(by_iteration[0], by_iteration[-1], strict=True))
    assert (last["trust in the PRM"], last["process share"]) == ("0.42", "0.21")


def test_two_runs_are_compared_side_by_side(tmp_path: Path) -> None:
    runs = [find_run(make_run(tmp_path / name, iterations=count)) for name, count in (("a", 2), ("b", 3))]
    write_summary(tmp_path / "b" / "policy" / "3", "update-policy", config={"lr": 0.5}, metrics={"entropy": 0.25})
    text = markdown([runs[0], find_run(tmp_path / "b")])
    summary, differences, *rest = tables(text)
    assert summary[0] == ["", "a", "b"]
    assert next(row for row in summary if row[0] == "accuracy, training")[1:] == ["0.2 ▁█", "0.3 ▁▅█"]
    assert ["update-policy", "lr", "0.0001", "0.5"] in differences
    assert len(rest) == 2


def test_names_and_errors_cannot_become_markup(tmp_path: Path) -> None:
    make_run(tmp_path / "run", iterations=1)
    write_summary(tmp_path / "run" / "1" / "filter", "filter", status="failed", error="<img src=x> | `x`\nand more")
    run = find_run(tmp_path / "run", "a|b <script>_x_")
    text = markdown([run])
    assert "a\\|b &lt;script&gt;\\_x\\_" in text
    assert "&lt;img src=x&gt; \\| \\`x\\` and more" in text
    assert "<script>" not in text
    tables(text)


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    for iteration in range(1, 201):
        write_summary(tmp_path / str(iteration) / "verify", "verify", metrics={"accuracy": iteration / 200})
    _, by_iteration = tables(markdown([find_run(tmp_path)]))
    assert (by_iteration[2][0], by_iteration[-1][0], len(by_iteration)) == ("1", "200", 2 + 25)


def test_noise_is_drawn_flat() -> None:
    assert sparkline([46.0, 46.001, 46.002]) == "▄▄▄"
    assert sparkline([0.0, 0.0]) == "▄▄"
    assert len(sparkline([float(value) for value in range(1000)])) == 24
