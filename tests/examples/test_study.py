"""The example's study: which runs it wants, what it records, and what its report says."""

from __future__ import annotations

import csv
import doctest
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import credit
import oracle
import pytest
import study
import study_report
from study import Plan, Run, Wanted, drive, finalists, survivors, wanted

PLAN = Plan(("outcome", "oracle"), ("1", "2"), (0,), (1, 2), iterations=4, rung=2)

# What the loop would have left of a run: the better, the larger the learning rate, but at 2 outcomes alone collapse.
MAKEFILE = """
run: ; "$(PYTHON)" loop.py "$(RUNS)/rloo-x-seed$(SEED)" "$(OUTCOME_ONLY)" $(LR) $(ITERATIONS)
	echo $(PROMPTS) $(LR) $(SEED) $(ITERATIONS) >> $(WORK)/started
%/.done/sft: ; mkdir -p $(@D)
"""
LOOP = """
import json, pathlib, sys
place, outcome_only, lr, iterations = sys.argv[1:]
for iteration in range(0, int(iterations) + 1, 2):
    accuracy = 0.25 if not iteration else 0.05 if outcome_only and lr == "2" else iteration / 8 + float(lr) / 100
    directory = pathlib.Path(place, "eval", str(iteration), "verify")
    directory.mkdir(parents=True, exist_ok=True)
    summary = {"status": "complete", "rows": 8, "seconds": 1, "metrics": {"accuracy": accuracy}}
    (directory / "_summary.json").write_text(json.dumps(summary))
"""


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makefile: str, loop: str) -> None:
    """Puts another Makefile, and the script that it runs, in the place of the example's."""
    example = tmp_path / "example"
    example.mkdir()
    (example / "Makefile").write_text(f"PYTHON := {sys.executable}\n{makefile}")
    (example / "loop.py").write_text(loop)
    monkeypatch.setattr(study, "EXAMPLE", example)


def rise(*accuracies: float) -> study.Curve:
    """A curve with an evaluation every other iteration."""
    return {2 * index: accuracy for index, accuracy in enumerate(accuracies)}


def test_the_documentation_of_the_scripts() -> None:
    for module in (study, study_report, credit, oracle):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed


def test_screening_comes_first_and_the_worst_are_stopped() -> None:
    everything = [Wanted(Run(arm, lr, 0), 2) for arm in PLAN.arms for lr in PLAN.lrs]
    assert list(wanted(PLAN, {})) == everything
    curves = {Run("outcome", "1", 0): rise(0.2, 0.5), Run("outcome", "2", 0): rise(0.2, 0.34)}
    assert list(wanted(PLAN, curves)) == [Wanted(Run("outcome", "1", 0), 4), *everything[2:]]
    curves[Run("outcome", "2", 0)] = rise(0.2, 0.36)  # not that far behind
    assert list(wanted(PLAN, curves))[:2] == [Wanted(Run("outcome", lr, 0), 4) for lr in PLAN.lrs]


def screened(oracle_last: float) -> dict[Run, study.Curve]:
    return {
        Run("outcome", "1", 0): rise(0.2, 0.5, 0.6),
        Run("outcome", "2", 0): rise(0.2, 0.6, 0.4),
        Run("oracle", "1", 0): rise(0.2, 0.1),
        Run("oracle", "2", 0): rise(0.2, 0.5, oracle_last),
    }


def test_finals_are_at_the_best_learning_rate_and_on_other_seeds() -> None:
    curves = screened(0.7)
    finals = [Wanted(Run(arm, lr, seed), 4) for arm, lr in (("outcome", "1"), ("oracle", "2")) for seed in (1, 2)]
    assert list(wanted(PLAN, curves)) == finals
    for item in finals:
        curves[item.run] = rise(0.2, 0.5, 0.6)
    assert not list(wanted(PLAN, curves))


@pytest.mark.parametrize("name", study.PLANS)
def test_a_plan_compares_like_with_like(name: str) -> None:
    plan = study.PLANS[name]
    assert set(plan.arms) <= study.ARMS.keys()
    assert not set(plan.screening) & set(plan.finals)  # the finals are on seeds that chose nothing
    for arm in plan.arms:
        outcome, oracle = study_report.references(arm)
        assert {outcome, oracle} <= set(plan.arms)
        filters = {study.ARMS[each].get("FILTER_OPTIONS") for each in (arm, outcome, oracle)}
        assert len(filters) == 1


def test_a_hopeless_arm_has_no_finals() -> None:
    whole = {arm: survivors(PLAN, [Run(arm, lr, 0) for lr in PLAN.lrs], screened(0.49)) for arm in PLAN.arms}
    assert finalists(PLAN, whole, screened(0.52)) == {"outcome": "1"}  # 0.51 is not within 0.035 of 0.55
    assert finalists(PLAN, whole, screened(0.54)) == {"outcome": "1", "oracle": "2"}
    assert finalists(replace(PLAN, kept=("oracle",)), whole, screened(0.52)) == {"outcome": "1", "oracle": "2"}


def test_finals_begin_with_the_first_arm_and_then_take_the_best() -> None:
    plan = Plan(("outcome", "oracle", "ce"), ("1",), (0,), (1,), iterations=4, rung=2)
    ends = {"outcome": 0.6, "oracle": 0.7, "ce": 0.8}
    curves = {Run(arm, "1", 0): rise(0.2, 0.5, end) for arm, end in ends.items()}
    assert [item.run.arm for item in wanted(plan, curves)] == ["outcome", "ce", "oracle"]


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, MAKEFILE, LOOP)
    monkeypatch.setattr(credit, "rows_of", lambda place, stage: [{"iteration": 2, "share": 0.75}])
    work = tmp_path / "work"
    one = study.Study(PLAN, tmp_path / "results" / "study.csv", work)
    one.prepare()
    assert not drive(one, 2, 0.0)  # no time at all
    assert not one.rows()
    one.take(one.missing()[0])
    assert drive(study.Study(PLAN, one.csv_file, work), 2, None)
    started = [line.split() for line in (work / "started").read_text().splitlines()]
    assert all(words[0] == study.SHARED["PROMPTS"] for words in started)
    # both learning rates of both arms to the rung, the survivors to the end, and the finals of both arms
    rungs, ends = [("1", "0", "2"), ("2", "0", "2")] * 2, [("1", "0", "4"), ("1", "0", "4"), ("2", "0", "4")]
    finals = [(lr, seed, "4") for lr in "12" for seed in "12"]
    assert sorted(tuple(words[1:]) for words in started) == sorted(rungs + ends + finals)
    rows = one.rows()
    assert list(rows[0]) == list(study.COLUMNS)
    keys = [(row["arm"], float(row["lr"]), int(row["seed"]), int(row["iteration"])) for row in rows]
    assert keys == sorted(keys, key=lambda key: (key[0] != "outcome", *key[1:]))
    assert len(set(keys)) == len(keys)
    assert {row["share"] for row in rows if row["iteration"] == "2"} == {"0.75"}
    assert not list((work / "study").glob("*/rloo-x-seed[12]"))  # what is recorded takes no room
    before = one.csv_file.read_bytes()
    assert drive(one, 2, None)
    assert one.csv_file.read_bytes() == before


COLLAPSING = """
run: ; "$(PYTHON)" loop.py "$(RUNS)/rloo-x-seed$(SEED)" $(ITERATIONS)
%/.done/sft: ; mkdir -p $(@D)
"""
COLLAPSE = """
import json, pathlib, sys
place, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
def write(stage, **metrics):
    stage.mkdir(parents=True, exist_ok=True)
    summary = {"status": "complete", "rows": 128, "seconds": 1, "metrics": metrics}
    (stage / "_summary.json").write_text(json.dumps(summary))
for iteration in range(1, last + 1):
    write(place / str(iteration) / "verify", accuracy=0.5)
    write(place / str(iteration) / "filter", kept=0 if iteration == 6 else 3)
    if iteration == 6:
        sys.exit(3)
    (place / "policy" / str(iteration)).mkdir(parents=True, exist_ok=True)
for iteration in {*range(0, last + 1, 3), last}:
    write(place / "eval" / str(iteration) / "verify", accuracy=iteration / 10)
"""


def test_a_run_that_collapses_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, COLLAPSING, COLLAPSE)
    monkeypatch.setattr(credit, "rows_of", lambda place, stage: [])
    one = study.Study(study.FULL, tmp_path / "study.csv", tmp_path / "work")
    run = Run("outcome", "1.2e-3", 0)
    for until in (6, 15):
        one.take(Wanted(run, until))
        held_out = {0: 0.0, 3: 0.3} | dict.fromkeys(range(6, until + 1, 3), 0.5)
        assert study.curves_of(one.rows()) == {run: held_out}
        assert [row["rollouts"] for row in one.rows()] == [str(128 * iteration) for iteration in range(until + 1)]
        assert [row["groups_kept"] for row in one.rows()] == ["", *["3"] * 5, *["0"] * (until - 5)]


def test_prms_that_runs_start_from_are_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = "trained-prm: ; echo $(PRM_START) $(BETA) >> $(WORK)/prms\n%/.done/sft: ; mkdir -p $(@D)\n"
    stand_in(tmp_path, monkeypatch, makefile, "")
    plan = replace(PLAN, arms=("outcome", "paper-trained", "trained-clip-cut"))
    study.Study(plan, tmp_path / "study.csv", tmp_path / "work").prepare()
    assert (tmp_path / "work" / "prms").read_text().split() == ["trained", "trained", "0.3"]


def test_a_failed_run_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Makefile").write_text("run:\n\techo no room\n\tfalse\n")
    monkeypatch.setattr(study, "EXAMPLE", tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        drive(study.Study(PLAN, tmp_path / "study.csv", tmp_path / "work"), 1, None)
    assert "no room" in (tmp_path / "work" / "study" / "outcome-1" / "seed0.log").read_text()


def rows_of_a_study() -> list[dict[str, str]]:
    """Outcomes alone, the oracle and a variant, at one learning rate, in the seeds of the full study's finals."""
    rows = []
    ends = {
        "outcome": (0.7, 0.3, 0.75, 0.8, 0.7),
        "oracle": (0.9, 0.9, 0.88, 0.92, 0.9),
        "ce": (0.8, 0.6, 0.8, 0.9, 0.8),
        "outcome-cut": (0.75, 0.35, 0.8, 0.85, 0.75),
        "trained-tight-cut": (0.85, 0.45, 0.9, 0.95, 0.85),
    }
    for arm, lasts in ends.items():
        for seed, last in zip((0, 1, 2, 3, 4, 5), (0.8, *lasts), strict=True):
            for iteration in range(16):
                row = dict.fromkeys(study.COLUMNS, "") | {"arm": arm, "lr": "6e-4", "seed": str(seed)}
                row |= {
                    "iteration": str(iteration),
                    "rollouts": str(128 * iteration),
                    "seconds": "2" if iteration else "",
                    "groups_kept": "0" if last == 0.3 and iteration > 9 else "7",
                }
                if iteration % 3 == 0:
                    row["heldout_accuracy"] = str(0.3 + (last - 0.3) * iteration / 15)
                rows.append(row)
    return rows


def test_finals_at_several_rates_are_reported_at_the_best() -> None:
    rows = rows_of_a_study()
    better, worse = (
        [row | {"lr": "3e-4", "heldout_accuracy": row["heldout_accuracy"] and accuracy} for row in rows]
        for accuracy in ("0.99", "0.01")
    )
    few = [row for row in better if row["seed"] in ("1", "2")]
    for extra, lr, seeds in (([], "6e-4", 5), (few, "6e-4", 5), (better, "3e-4", 5), (worse, "6e-4", 5)):
        results = study_report.Results([*rows, *extra], study.FULL)
        runs = results.finals["outcome"]
        assert ({run.lr for run in runs.values()}, len(runs)) == ({lr}, seeds)


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, study.COLUMNS)
        writer.writeheader()
        writer.writerows(rows_of_a_study())
    monkeypatch.setattr("sys.argv", ["study_report.py", str(path), "--plot", str(tmp_path / "study.svg")])
    study_report.main()
    shown = capsys.readouterr().out
    finals = shown[shown.index("Finals") :].splitlines()
    cells = {words[0]: words for line in finals if (words := [cell.strip() for cell in line.strip("|").split("|")])}
    differences = [0.1, 0.3, 0.05, 0.1, 0.1]
    half = 2.776 * stdev(differences) / math.sqrt(5)
    expected = f"{fmean(differences):+.3f} [{fmean(differences) - half:+.3f}, {fmean(differences) + half:+.3f}]"
    assert cells["ce"][:5] == ["ce", "6e-4", "5", "0.780", expected]
    assert cells["outcome"][2:5:2] == ["5, 1 collapsed", ""]
    # areas are linear in the end, so their ratio is that of the ends
    assert cells["ce"][7].startswith(f"{0.65 / (0.2 + 0.6 + 0.13 + 0.12 + 0.2):.2f} [")
    assert cells["trained-tight-cut"][4:8:3] == ["+0.100 [+0.100, +0.100]", ""]  # no oracle under its filter
    assert cells["outcome"][9] == "1440 (4 of 5)"  # 0.6 is 3/4 of the way to the median end, 0.7
    assert cells["oracle"][12] == "30"
    assert (tmp_path / "study.svg").stat().st_size > 10_000
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match=r"is not a file of study\.py"):
        study_report.main()
