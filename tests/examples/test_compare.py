"""The example's comparisons: the loop's options, and curves over seeds from the summaries of runs."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import compare
import curves
import numpy as np
import online_frozen
import pytest
from matplotlib.figure import Figure

from tests.paced_loop import PacedLoop

EXAMPLE = Path(__file__).parents[2] / "examples" / "arithmetic"
SETTINGS = "PROMPTS=4 N=2 LR=1e-4"


def write_summary(directory: Path, *, rows: int = 0, **metrics: float) -> None:
    directory.mkdir(parents=True)
    summary = {"status": "complete", "rows": rows, "seconds": 0.5, "metrics": metrics}
    (directory / "_summary.json").write_text(json.dumps(summary))


def write_run(
    root: Path, name: str, heldout: dict[int, float], pairs: dict[int, float] | None = None, settings: str = SETTINGS
) -> Path:
    """A run of which each iteration sampled 8 rollouts, and the filter kept 2 groups of 2."""
    run = root / name
    (run / ".done").mkdir(parents=True)
    (run / ".done" / "settings").write_text(settings + "\n")
    for iteration in range(max(heldout) + 1):
        if iteration in heldout:
            write_summary(run / "eval" / str(iteration) / "verify", accuracy=heldout[iteration])
        if iteration:
            write_summary(run / str(iteration) / "verify", rows=8, accuracy=0.25)
            write_summary(run / str(iteration) / "filter", rows=4, kept=2)
        if pairs and iteration in pairs:
            write_summary(run / "prm" / str(iteration), pair_accuracy_before=pairs[iteration], pair_accuracy=1.0)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two estimators with both kinds of rewards, two seeds, not in order; one run was taken further than the others."""
    return [
        write_run(tmp_path, "rloo-process-seed1", {0: 0.2, 2: 0.5, 4: 0.8}, {1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0}),
        write_run(tmp_path, "rloo-outcome-seed0", {0: 0.2, 2: 0.3, 4: 0.5}),
        write_run(tmp_path, "rloo-process-seed0", {0: 0.2, 2: 0.4, 4: 0.6, 6: 0.9}, {1: 0.5, 2: 0.7, 3: 0.8, 4: 0.9}),
        write_run(tmp_path, "rloo-outcome-seed1", {0: 0.2, 2: 0.4, 4: 0.6}),
        write_run(tmp_path, "gae-process-seed0", {0: 0.2, 2: 0.2, 4: 0.3}, settings=f"{SETTINGS} CRITIC_LR=1e-3"),
        write_run(tmp_path, "gae-outcome-seed0", {0: 0.2, 2: 0.3, 4: 0.4}, settings=f"{SETTINGS} CRITIC_LR=1e-3"),
    ]


def test_mean_and_standard_error() -> None:
    values = [0.31, 0.35, 0.42, 0.28]
    point = curves.mean_and_error(3, values)
    assert point.mean == pytest.approx(np.mean(values))
    assert point.error == pytest.approx(np.std(values, ddof=1) / 2)
    assert str(point) == "0.340 ± 0.030"
    assert curves.mean_and_error(3, [0.5]) == (3, 0.5, None)
    assert str(curves.mean_and_error(3, [0.5])) == "0.500"


def test_rollouts_used_are_those_sampled_and_not_those_kept(runs: list[Path]) -> None:
    rows = curves.read_run(runs[0]).rows
    assert [row["rollouts"] for row in rows] == [0, 8, 16, 24, 32]
    assert [row["heldout_accuracy"] for row in rows] == [0.2, None, 0.5, None, 0.8]
    assert [row["groups_kept"] for row in rows] == [None, 2, 2, 2, 2]
    assert [row["prm_pair_accuracy_before"] for row in rows] == [None, 0.5, 0.75, 1.0, 1.0]


def test_a_curve_is_over_what_all_seeds_have(runs: list[Path]) -> None:
    points = curves.curve(curves.of(curves.read_runs(runs), "rloo", "process"), "heldout_accuracy")
    assert [point.x for point in points] == [0, 16, 32]
    assert [point.mean for point in points] == pytest.approx([0.2, 0.45, 0.7])
    assert [point.error for point in points] == pytest.approx([0.0, 0.05, 0.1])


def test_runs_of_different_settings_are_not_compared(tmp_path: Path, runs: list[Path]) -> None:
    assert len(curves.read_runs(runs)) == 6  # settings that only one estimator has are no difference
    other = write_run(tmp_path, "grpo-outcome-seed0", {0: 0.2}, settings="PROMPTS=4 N=2 LR=5e-4")
    with pytest.raises(
        SystemExit, match=r"grpo-outcome-seed0 was made with LR=5e-4, .*rloo-process-seed1 with LR=1e-4"
    ):
        curves.read_runs([*runs, other])


@pytest.mark.parametrize(
    ("name", "message"), [("nonsense", "a run is named"), ("rloo-process-seed9", "no run with evaluations")]
)
def test_what_is_no_run_is_said_to_be_none(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        curves.read_run(tmp_path / name)


def test_the_csv_has_every_iteration_of_every_run(tmp_path: Path, runs: list[Path]) -> None:
    compare.main([*map(str, runs), "--csv", str(tmp_path / "out" / "all.csv")])
    with open(tmp_path / "out" / "all.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 5 + 7
    (row,) = [
        r for r in rows if (r["estimator"], r["rewards"], r["seed"], r["iteration"]) == ("rloo", "process", "1", "2")
    ]
    found = {
        name: row[name] for name in ("rollouts", "heldout_accuracy", "training_accuracy", "prm_pair_accuracy_before")
    }
    assert {name: float(value) for name, value in found.items()} == {
        "rollouts": 16,
        "heldout_accuracy": 0.5,
        "training_accuracy": 0.25,
        "prm_pair_accuracy_before": 0.75,
    }


@pytest.mark.parametrize(("accuracy", "expected"), [(0.3, 50.0), (0.4, 100.0), (0.35, 75.0), (0.6, None)])
def test_rollouts_to_an_accuracy(accuracy: float, expected: float | None) -> None:
    points = [curves.Point(0, 0.2, None), curves.Point(100, 0.4, None), curves.Point(200, 0.3, None)]
    assert compare.rollouts_to(points, accuracy) == expected


def test_the_tables(tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([*map(str, runs), "--csv", str(tmp_path / "all.csv")])
    lines = [re.sub(r" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert "| estimator, rewards | 0 | 16 | 32 |" in lines
    assert "| RLOO, outcome | 0.200 ± 0.000 | 0.350 ± 0.050 | 0.550 ± 0.050 |" in lines
    assert "| PPO, process | 0.200 | 0.200 | 0.300 |" in lines
    # By seed at the end, at equal rollouts: 0.6 - 0.5 and 0.8 - 0.6. Over the run: 0.5 - 0.4 and 0.65 - 0.5.
    # The mean with process rewards passes 0.55 at 16 + 16 * 0.1 / 0.25 = 22.4 of 32 rollouts.
    assert "| RLOO | +0.150 ± 0.050 | +0.125 ± 0.025 | 70% |" in lines
    assert "| PPO | -0.100 | -0.100 | not reached |" in lines


def test_the_pictures_show_the_means_with_their_errors(tmp_path: Path, runs: list[Path]) -> None:
    figure = Figure()
    points = curves.curve(curves.of(curves.read_runs(runs), "rloo", "process"), "heldout_accuracy")
    panel = figure.add_subplot()
    curves.draw(panel, points, "process", "with")
    line = np.asarray(panel.lines[0].get_xydata(), dtype=np.float64)
    assert line.round(6).tolist() == [[0, 0.2], [16, 0.45], [32, 0.7]]
    band = np.asarray(panel.collections[0].get_paths()[0].vertices, dtype=np.float64).round(6)
    assert np.unique(band, axis=0).tolist() == [[0, 0.2], [16, 0.4], [16, 0.5], [32, 0.6], [32, 0.8]]


def test_the_panels_of_a_comparison_are_on_the_same_axes(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    # The second seed of one estimator alone was evaluated further.
    further = write_run(tmp_path, "rloo-outcome-seed2", {0: 0.2, 2: 0.4, 4: 0.6, 6: 0.95})
    compare.main([*map(str, [*runs, further]), "--csv", str(tmp_path / "all.csv"), "--plot", "unused.svg"])
    rloo, ppo = figures[0].axes
    assert [rloo.get_title(loc="left"), ppo.get_title(loc="left")] == ["RLOO", "PPO"]
    assert rloo.get_xlim() == ppo.get_xlim()
    assert rloo.get_ylim() == ppo.get_ylim()
    for panel in (rloo, ppo):
        assert [np.asarray(line.get_xdata()).tolist() for line in panel.lines] == [[0, 16, 32]] * 2


def test_the_same_runs_give_the_same_picture(tmp_path: Path, runs: list[Path]) -> None:
    for name in ("one.svg", "same.svg"):
        compare.main([*map(str, runs), "--csv", str(tmp_path / "all.csv"), "--plot", str(tmp_path / name)])
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "same.svg").read_bytes()
    assert (tmp_path / "one.svg").stat().st_size > 10_000


def test_online_against_frozen(tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    online = [run for run in runs if run.name.startswith("rloo-process")]
    frozen = [
        write_run(tmp_path, f"rloo-frozen-seed{seed}", {0: 0.2, 4: 0.5}, {1: 0.5, 2: 0.7, 3: 0.6, 4: last})
        for seed, last in ((0, 0.5), (1, 0.6))
    ]
    arguments = [*map(str, [*online, *frozen]), "--csv", str(tmp_path / "all.csv"), "--plot", str(tmp_path / "all.png")]
    online_frozen.main(arguments)
    lines = [re.sub(r" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert "| 3 | 0.900 ± 0.100 | 0.600 ± 0.000 | | |" in lines
    assert "| 4 | 0.950 ± 0.050 | 0.550 ± 0.050 | 0.700 ± 0.100 | 0.500 ± 0.000 |" in lines
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The example's make, which runs nothing of primecli here."""
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(EXAMPLE), "PRIMECLI=primecli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry_run(tmp_path: Path, *arguments: str) -> list[list[str]]:
    """The commands of each iteration's pipeline, of a run that was not started."""
    shown = make("-n", f"WORK={tmp_path}", *arguments)
    assert shown.returncode == 0, shown.stderr
    pipelines = [line for line in shown.stdout.splitlines() if "--step " in line]
    return [[re.sub(r"\s+", " ", part).strip() for part in line.split("|")] for line in pipelines]


STAGES = {
    "rloo": "generate verify filter update-prm score-prm compute-advantages update-policy",
    "rloo OUTCOME_ONLY=1": "generate verify filter compute-advantages update-policy",
    "gae": "generate verify filter update-prm score-prm score-values compute-advantages update-critic update-policy",
    "gae OUTCOME_ONLY=1": "generate verify filter score-values compute-advantages update-critic update-policy",
    "rloo PRM_ON=all": "generate verify update-prm filter score-prm compute-advantages update-policy",
    "rloo SCORE=before": "generate verify filter score-prm update-prm compute-advantages update-policy",
    "rloo SCORE=before PRM_ON=all": "generate verify score-prm update-prm filter compute-advantages update-policy",
    "grpo REWARDS=oracle": "generate verify filter oracle.py compute-advantages update-policy",
}


@pytest.mark.parametrize("options", STAGES)
def test_the_stages_of_an_iteration(options: str, tmp_path: Path) -> None:
    estimator, *others = options.split()
    outcome_only = others == ["OUTCOME_ONLY=1"]
    for pipeline in dry_run(tmp_path, "ITERATIONS=2", f"ESTIMATOR={estimator}", *others):
        assert [command.split()[1] for command in pipeline] == STAGES[options].split()
        (advantages,) = [command for command in pipeline if "compute-advantages" in command]
        assert f"--estimator {estimator} " in advantages
        assert ("--process-coef 0 " in advantages) == outcome_only


def test_an_iteration_takes_up_the_checkpoints_of_the_one_before(tmp_path: Path) -> None:
    first, second = dry_run(tmp_path, "ITERATIONS=2", "ESTIMATOR=gae", "SEED=3")
    run = tmp_path / "gae-process-seed3"
    for role, stage in (("policy", 8), ("prm", 3), ("critic", 7)):
        assert re.search(f"--{role} {tmp_path}/sft (--ref .*)?--checkpoint {run}/{role}/1 ", first[stage])
        assert re.search(f"--{role} {run}/{role}/1 (--ref .*)?--checkpoint {run}/{role}/2 ", second[stage])
    assert f"score-values --critic {run}/critic/1 " in second[5]
    assert f"score-prm --prm {run}/prm/2 " in second[4]


def test_an_asynchronous_run_samples_with_the_policy_of_one_update_before(tmp_path: Path) -> None:
    given = (f"WORK={tmp_path}", "ITERATIONS=4", "ASYNC=1", "EVAL_EVERY=4")
    shown = make("-n", *given).stdout
    run = tmp_path / "async" / "rloo-process-seed0"
    sampled = re.findall(r"generate --model (\S+) .*--step (\d)", shown)
    samplers = [f"{tmp_path}/sft", f"{tmp_path}/sft", f"{run}/policy/1", f"{run}/policy/2"]
    assert sampled == list(zip(samplers, "1234", strict=True))
    updates = re.findall(r"echo (\S+) +\| .*update-policy --policy (\S+) .*--max-staleness 1 --tis-cap 2", shown)
    before = [f"{tmp_path}/sft", *(f"{run}/policy/{number}" for number in (1, 2, 3))]
    assert updates == [(f"{run}/{number}/filter", policy) for number, policy in enumerate(before, start=1)]
    assert make(*given, "settings").returncode == 0
    assert make(*given, "settings", "TIS_CAP=5").returncode == 2
    for others, found in (("ASYNC=1", "async"), ("", "rloo-process-seed0")):
        shown = make("-n", f"WORK={tmp_path}", "compare", "ESTIMATORS=rloo", "SEEDS=0", "PLOT=", *others.split()).stdout
        assert shown.split()[-2].startswith(f"{tmp_path}/{found}")


def test_the_rollouts_of_an_asynchronous_run_are_those_that_the_prm_learns_from(tmp_path: Path) -> None:
    shown = make("-n", f"WORK={tmp_path}", "ITERATIONS=1", "ASYNC=1", "PRM_ON=all", "EVAL_EVERY=4").stdout
    sampled, updated = (line for line in shown.splitlines() if "--step 1" in line or "update-policy" in line)
    assert "filter" not in sampled
    assert updated.startswith(f"echo {tmp_path}/async/rloo-process-seed0/1/verify ")
    assert [part.split()[1] for part in updated.split("|")[1:3]] == ["update-prm", "filter"]


def test_the_prm_learns_again_from_the_iterations_before(tmp_path: Path) -> None:
    shown = make("-n", f"WORK={tmp_path}", "ITERATIONS=4", "PRM_REPLAY=2", "EVAL_EVERY=4").stdout
    run = tmp_path / "rloo-process-seed0"
    found = [
        (line.split("--prm ")[1].split()[0], line.split("--checkpoint ")[1].split()[0], line.count("generate --model"))
        for line in shown.splitlines()
        if "update-prm" in line
    ]
    assert found == [
        (f"{tmp_path}/sft", f"{run}/prm/1", 1),
        (f"{run}/prm/1", f"{run}/prm/2-replay", 0),
        (f"{run}/prm/2-replay", f"{run}/prm/2", 1),
        (f"{run}/prm/2", f"{run}/prm/3-replay", 0),
        (f"{run}/prm/3-replay", f"{run}/prm/3", 1),
        (f"{run}/prm/3", f"{run}/prm/4-replay", 0),
        (f"{run}/prm/4-replay", f"{run}/prm/4", 1),
    ]
    again = [re.findall(rf"{run}/(\d)/filter", line) for line in shown.splitlines() if re.search(r"-replay --lr", line)]
    assert again == [["1"], ["1", "2"], ["2", "3"]]
    removed = [line.split()[-1] for line in shown.splitlines() if line.startswith("rm -rf")]
    assert removed == [f"{run}/prm/{number}-replay" for number in (2, 3, 4)]


def test_a_prm_that_was_trained_before(tmp_path: Path) -> None:
    shown = make("-n", f"WORK={tmp_path}", "ITERATIONS=2", "PRM_START=trained", "PRM_PROMPTS=99", "EVAL_EVERY=2").stdout
    before, *iterations = re.findall(r"(generate (?:.|\\\n)*?) --quiet > /dev/null\n", shown)[:3]
    assert "--batch-prompts 99 " in before
    assert f"--prm {tmp_path}/sft --ref {tmp_path}/sft --checkpoint {tmp_path}/prm-99x4-lr3e-4-beta0.05 " in before
    run = tmp_path / "rloo-process-seed0"
    for iteration, start in zip(iterations, (tmp_path / "prm-99x4-lr3e-4-beta0.05", run / "prm" / "1"), strict=True):
        assert f"update-prm --prm {start} --ref {tmp_path}/sft " in iteration
    assert "--epochs" not in before
    for options, with_epochs in (("PRM_START_OPTIONS", [True, False]), ("PRM_OPTIONS", [True, True])):
        shown = make("-n", f"WORK={tmp_path}", "PRM_START=trained", "ITERATIONS=1", f"{options}=--epochs 4").stdout
        pipelines = re.findall(r"(generate (?:.|\\\n)*?) --quiet > /dev/null\n", shown)[:2]
        assert ["--epochs 4" in pipeline for pipeline in pipelines] == with_epochs
        assert f"--checkpoint {tmp_path}/prm-1024x4-lr3e-4-beta0.05--epochs4 " in pipelines[0]
        assert f"--prm {tmp_path}/prm-1024x4-lr3e-4-beta0.05--epochs4 " in pipelines[1]
    assert f"{tmp_path}/prm-" not in make("-n", f"WORK={tmp_path}", "PRM_START=trained", "OUTCOME_ONLY=1").stdout


def test_a_prm_that_rewards_before_it_learns(tmp_path: Path) -> None:
    run = tmp_path / "rloo-process-seed0"
    for pipeline, start in zip(
        dry_run(tmp_path, "ITERATIONS=2", "SCORE=before"), (tmp_path / "sft", run / "prm" / "1"), strict=True
    ):
        assert f"score-prm --prm {start} --ref {tmp_path}/sft " in pipeline[3]
        assert f"update-prm --prm {start} --ref shards " in pipeline[4]


@pytest.mark.parametrize("jobs", ["", "-j4"])
def test_an_asynchronous_run_samples_during_the_update(jobs: str, tmp_path: Path) -> None:
    loop = PacedLoop(tmp_path)
    for name in (".done/sft", ".done/task", "sft/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = (f"WORK={tmp_path}", "ITERATIONS=4", "ASYNC=1", "EVAL_EVERY=1", f"PRIMECLI={loop.stage}", "PYTHON=true")
    done = make(*jobs.split(), *given)
    assert done.returncode == 0, done.stderr
    loop.check_order(iterations=4)


@pytest.mark.parametrize(
    ("options", "rates"), [("PRM=online", ["3e-4"] * 4), ("PRM=frozen FREEZE_AFTER=2", ["3e-4", "3e-4", "0", "0"])]
)
def test_a_frozen_prm_is_measured_and_no_longer_trained(options: str, rates: list[str], tmp_path: Path) -> None:
    pipelines = dry_run(tmp_path, "ITERATIONS=4", *options.split())
    found = [re.search(r"update-prm .*? --lr (\S+)", " ".join(pipeline)) for pipeline in pipelines]
    assert [match and match[1] for match in found] == rates


def test_the_policys_learning_rate_falls_if_asked_to(tmp_path: Path) -> None:
    for pipeline in dry_run(tmp_path, "ITERATIONS=2", "SCHEDULE=cosine", "TOTAL_STEPS=9", "MIN_LR=1e-5"):
        falling = [command.split()[1] for command in pipeline if "--schedule" in command]
        assert falling == ["update-policy"]
        assert " --lr 1e-4 --schedule cosine --total-steps 9 --min-lr 1e-5 " in pipeline[-1]
    assert not [part for pipeline in dry_run(tmp_path, "ITERATIONS=1") for part in pipeline if "--schedule" in part]


@pytest.mark.parametrize(
    "changed",
    [
        "SCHEDULE=linear TOTAL_STEPS=9",
        "PROMPTS=64",
        "PRM_LR=1e-3",
        "PROCESS_COEF=2",
        "EVAL_N=4",
        "MAX_TOKENS=128",
        "PRM_ON=all",
        "PRM_REPLAY=2",
        "PRM_START=trained",
        "PRM_START=trained PRM_START_OPTIONS=--balance",
        "FILTER_OPTIONS=--allow-truncated",
        "SCORE=before",
        "PRM_OPTIONS=--balance",
    ],
)
def test_a_run_goes_on_with_its_settings_only(changed: str, tmp_path: Path) -> None:
    assert make(f"WORK={tmp_path}", "settings").returncode == 0
    assert make(f"WORK={tmp_path}", "settings", "ITERATIONS=99", "CRITIC_LR=1", "FREEZE_AFTER=7").returncode == 0
    refused = make(f"WORK={tmp_path}", "settings", *changed.split())
    assert refused.returncode == 2
    assert f"{tmp_path}/rloo-process-seed0 was made with PROMPTS=128" in refused.stderr
    said = [word.partition("=")[2] if "OPTIONS=" in word else word for word in changed.split()]
    assert all(word in refused.stderr for word in said)


def test_a_task_keeps_its_options(tmp_path: Path) -> None:
    stamp = tmp_path / ".done" / "task"
    stamp.parent.mkdir()
    for made, given in (("", ""), ("--steps 16 --slips fact\n", "--steps 16  --slips fact")):
        stamp.write_text(made)
        assert make(f"WORK={tmp_path}", "settings", f"TASK_OPTIONS={given}").returncode == 0
        refused = make(f"WORK={tmp_path}", "settings", "TASK_OPTIONS=--steps 3")
        assert refused.returncode == 2
        assert f"TASK_OPTIONS='{made.strip()}', not '--steps 3': give another WORK" in refused.stderr


@pytest.mark.parametrize(
    ("options", "changed"),
    [("ESTIMATOR=gae", "CRITIC_LR=1"), ("ESTIMATOR=gae", "LAM=1"), ("PRM=frozen", "FREEZE_AFTER=7")],
)
def test_the_settings_of_some_runs_only(options: str, changed: str, tmp_path: Path) -> None:
    assert make(f"WORK={tmp_path}", "settings", options).returncode == 0
    assert make(f"WORK={tmp_path}", "settings", options, changed).returncode == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ESTIMATOR=ppo"], "no estimator ppo"),
        (["ESTIMATORS=rloo x"], "no estimator x"),
        (["PRM=x"], "PRM=x"),
        (["REWARDS=x"], "REWARDS=x: give prm or oracle"),
        (["PRM_ON=x"], "PRM_ON=x: give kept or all"),
        (["PRM_START=x"], "PRM_START=x: give sft or trained"),
        (["SCORE=x"], "SCORE=x: give after or before"),
        (["SCORE=before", "PROCESS_TRUST=1"], "PROCESS_TRUST needs SCORE=after"),
        (["SCHEDULE=linear"], "needs TOTAL_STEPS"),
    ],
)
def test_make_refuses_what_it_does_not_know(options: list[str], message: str, tmp_path: Path) -> None:
    refused = make("-n", f"WORK={tmp_path}", *options)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_what_the_prm_learns_again_is_kept(tmp_path: Path) -> None:
    refused = make("-n", f"WORK={tmp_path}", "PRM_REPLAY=2", "KEEP=last")
    assert (refused.returncode, "KEEP=last removes what PRM_REPLAY needs" in refused.stderr) == (2, True)


def test_compare_makes_every_run_once(tmp_path: Path) -> None:
    shown = make("-n", f"WORK={tmp_path}", "compare", "ESTIMATORS=rloo gae", "SEEDS=0 4", "ITERATIONS=1")
    made = re.findall(r"== (\S+): iteration 1 of 1", shown.stdout)
    expected = [
        f"{name}-{kind}-seed{seed}" for seed in (0, 4) for name in ("rloo", "gae") for kind in ("process", "outcome")
    ]
    assert [Path(run).name for run in made] == expected
    assert shown.stdout.splitlines()[-1].split()[-8:] == [str(tmp_path / name) for name in expected]
    shown = make("-n", f"WORK={tmp_path}", "online-frozen", "ESTIMATOR=grpo", "SEEDS=1", "ITERATIONS=1")
    made = re.findall(r"== (\S+): iteration 1 of 1", shown.stdout)
    assert [Path(run).name for run in made] == ["grpo-process-seed1", "grpo-frozen-seed1"]


def test_pictures_without_matplotlib_are_refused_before_the_runs(tmp_path: Path) -> None:
    # A Python without the extra: `false` fails as the import does.
    refused = make(f"WORK={tmp_path}", "PYTHON=false", "plot-extra")
    assert refused.returncode == 2
    assert "pip install -c constraints.txt -e '.[plot]'" in refused.stderr
    assert make(f"WORK={tmp_path}", "PYTHON=false", "plot-extra", "PLOT=").returncode == 0


def test_distillation_scores_with_the_teacher_and_grades_nothing(tmp_path: Path) -> None:
    first, second = dry_run(tmp_path, "ITERATIONS=2", "distill", "TEACHER=big")
    run = tmp_path / "distill-seed0"
    for pipeline in (first, second):
        assert [command.split()[1] for command in pipeline] == [
            "generate", "score-prm", "compute-advantages", "update-policy",
        ]  # fmt: skip
        assert "--prm big --ref rollout --beta 1 " in pipeline[1]
        assert "--outcome-coef 0 --process-gamma 0 --process-norm none --no-whiten" in pipeline[2]
    assert f"update-policy --policy {tmp_path}/sft --checkpoint {run}/policy/1 " in first[3]
    assert f"generate --model {run}/policy/1 " in second[0]


def test_the_teacher_is_the_last_policy_of_the_loop(tmp_path: Path) -> None:
    pipelines = dry_run(tmp_path, "ITERATIONS=1", "distill")
    assert [len(pipeline) for pipeline in pipelines] == [7, 4]  # first the loop
    assert f"--prm {tmp_path}/rloo-process-seed0/policy/1 " in pipelines[1][1]
