from __future__ import annotations

from pathlib import Path

import pytest

from primecli.errors import InputError
from primecli.files import lock
from primecli.pipeline.evaluation import write_evaluation
from primecli.report.headlines import headlines
from primecli.report.runs import find_run, typical_seconds
from tests.made_runs import make_run, write_summary


def positions(path: Path) -> dict[str, tuple[int, str]]:
    """Iteration and purpose of each summary, by its path in the run."""
    run = find_run(path)
    return {entry.path.relative_to(path).as_posix(): (entry.iteration, entry.purpose) for entry in run.entries}


def test_layout_of_the_arithmetic_example(tmp_path: Path) -> None:
    found = positions(make_run(tmp_path / "run"))
    assert found["1/verify"] == (1, "training")
    assert found["policy/3"] == (3, "training")
    assert found["eval/0/verify"] == (0, "eval")


def test_layouts_by_stage_and_by_named_steps(tmp_path: Path) -> None:
    for stage in ("generate", "verify", "filter", "compute-advantages"):
        write_summary(tmp_path / "a" / stage / "7", stage)
        write_summary(tmp_path / "b" / "step-007" / stage, stage)
    assert set(positions(tmp_path / "a").values()) == {(7, "training")}
    assert set(positions(tmp_path / "b").values()) == {(7, "training")}


def test_a_single_iteration_gets_its_number_from_the_runs_directory(tmp_path: Path) -> None:
    write_summary(tmp_path / "runs" / "12" / "verify", "verify")
    assert positions(tmp_path / "runs" / "12") == {"verify": (12, "training")}
    write_summary(tmp_path / "once" / "verify", "verify")
    assert positions(tmp_path / "once") == {"verify": (0, "training")}


def test_evaluations_are_recognised_by_name_or_by_having_no_later_stage(tmp_path: Path) -> None:
    for stage in ("generate", "verify", "filter"):
        write_summary(tmp_path / "1" / stage, stage)
    for where in ("heldout-math/1", "aime/2024/1", "values/1"):
        write_summary(tmp_path / where / "verify", "verify")
    write_summary(tmp_path / "1" / "val" / "gsm8k" / "verify", "verify")
    found = positions(tmp_path)
    assert found["heldout-math/1/verify"] == (1, "heldout-math")
    assert found["1/val/gsm8k/verify"] == (1, "val/gsm8k")
    assert found["values/1/verify"] == (1, "values")  # no later stage stands beside it
    assert found["1/filter"] == (1, "training")


def test_an_iteration_that_has_just_started_is_training(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    write_summary(tmp_path / "2" / "generate", "generate", status="running")
    assert positions(tmp_path)["2/generate"] == (2, "training")


def test_two_runs_below_one_directory_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, iterations=1)
    with pytest.raises(InputError, match=r"holds several runs: .*a and .*b"):
        find_run(tmp_path)


def test_an_empty_directory_and_a_file_are_not_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no _summary\.json below it"):
        find_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        find_run(tmp_path / "file")
    with pytest.raises(InputError, match="no such directory"):
        find_run(tmp_path / "nowhere")


def test_a_stage_with_two_directories_is_weighted_by_rows(tmp_path: Path) -> None:
    write_summary(tmp_path / "1" / "math" / "verify", "verify", rows=30, metrics={"accuracy": 0.5})
    write_summary(tmp_path / "1" / "code" / "verify", "verify", rows=10, metrics={"accuracy": 0.1})
    run = find_run(tmp_path)
    assert run.series("verify", "accuracy") == {1: pytest.approx((30 * 0.5 + 10 * 0.1) / 40)}
    assert run.series("verify", "seconds") == {1: 20.0}
    assert run.total_rollouts() == {1: 40}


def test_totals_run_over_iterations_without_evaluations(tmp_path: Path) -> None:
    run = find_run(make_run(tmp_path, iterations=2))
    assert run.total_rollouts() == {0: 0, 1: 16, 2: 32}
    assert run.total_seconds() == {0: 0.0, 1: 60.0, 2: 120.0}  # four shard stages and two updates of 10 s
    assert run.series("verify", "accuracy", "eval") == {0: pytest.approx(0.2), 2: pytest.approx(0.4)}


def test_a_broken_summary_is_a_problem_but_does_not_stop_the_reading(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    (tmp_path / "1" / "filter" / "_summary.json").write_text('{"stage": ')
    run = find_run(tmp_path)
    assert len(run.problems) == 1
    assert "1/filter/_summary.json: is not JSON" in run.problems[0]
    assert run.series("verify", "accuracy") == {1: pytest.approx(0.1)}


@pytest.mark.parametrize("value", ["high", True, None, [1]])
def test_a_metric_that_is_not_a_number_is_a_problem_too(tmp_path: Path, value: object) -> None:
    write_summary(tmp_path / "1" / "verify", "verify", metrics={"accuracy": value})
    assert "1/verify/_summary.json: metrics.accuracy: expected a number, found" in find_run(tmp_path).problems[0]


def test_unfinished_stages_have_a_state_but_no_values(tmp_path: Path) -> None:
    write_summary(tmp_path / "1" / "verify", "verify", status="failed", metrics={"accuracy": 0.5})
    write_summary(tmp_path / "2" / "verify", "verify", status="running")
    run = find_run(tmp_path)
    assert run.series("verify", "accuracy") == {}
    assert [entry.state() for entry in run.entries] == ["failed", "killed"]
    with lock(tmp_path / "2" / "verify" / ".primecli.lock", "it"):
        assert run.entries[1].state() == "running"


def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere", iterations=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1").symlink_to(tmp_path / "elsewhere" / "1")
    (tmp_path / "elsewhere" / "1" / "loop").symlink_to(tmp_path / "elsewhere" / "1")
    assert len(find_run(tmp_path / "run").entries) == 4


def test_the_typical_iteration_is_the_median_between_starts(tmp_path: Path) -> None:
    for iteration, minute in enumerate((0, 4, 9, 50)):
        write_summary(tmp_path / str(iteration) / "verify", "verify", minute=minute)
    assert typical_seconds(find_run(tmp_path)) == 5 * 60  # of 4, 5 and 41 minutes


def test_a_run_of_the_starter_is_called_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("low-beta", "high-beta"):
        make_run(tmp_path / name / "run", iterations=1)
    assert find_run(tmp_path / "low-beta" / "run").name == "low-beta"
    monkeypatch.chdir(tmp_path / "high-beta" / "run")
    assert find_run(Path()).name == "high-beta"
    assert find_run(Path(), "mine").name == "mine"


def test_an_evaluation_is_read_as_a_stage_of_its_own(tmp_path: Path) -> None:
    make_run(tmp_path)
    metrics = {"avg@4": 0.25, "pass@1": 0.25, "pass@4": 0.5, "maj@1": 0.25, "maj@4": 0.375}
    described = {name: {"value": value, "low": None, "high": None} for name, value in metrics.items()}
    write_evaluation(tmp_path / "eval" / "3" / "verify", {"all": {"metrics": described}})
    run = find_run(tmp_path)
    assert run.series("evaluate", "pass@n", "eval") == {3: 0.5}
    assert run.series("evaluate", "maj@n", "eval") == {3: 0.375}
    assert not run.series("evaluate", "best@n", "eval")
    assert run.series("verify", "accuracy", "eval") == {0: 0.2, 3: 0.5}
    assert [line.label for line in headlines([run])][:3] == ["accuracy, eval", "pass@n, eval", "maj@n, eval"]
    (tmp_path / "eval" / "3" / "verify" / "_evaluation.json").write_text('{"all": 1e400}')
    assert "_evaluation.json: all: expected an object" in find_run(tmp_path).problems[0]
