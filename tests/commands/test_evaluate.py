from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from primecli.shards import schema
from tests.builders import rollout, write_shards
from tests.conftest import check_golden

WRONG = ["8", "1/2", "0.5", r"\frac{1}{2}", None]


def samples(right: Sequence[int], size: int, **columns: Any) -> list[dict[str, Any]]:
    """Groups of `size` samples of which so many are right, at the front; the wrong ones give all of WRONG in turn."""
    return [
        rollout(
            group,
            index,
            size,
            **{
                schema.OUTCOME_REWARD: float(index < number),
                schema.EXTRACTED_ANSWER: "7" if index < number else WRONG[index % len(WRONG)],
                **columns,
            },
        )
        for group, number in enumerate(right)
        for index in range(size)
    ]


def with_rewards(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Process rewards by which the last sample of each group scores highest."""
    for row in rows:
        row[schema.PROCESS_REWARDS] = [row[schema.SAMPLE_INDEX] / len(row[schema.RESPONSE_IDS])] * len(
            row[schema.RESPONSE_IDS]
        )
    return rows


@pytest.fixture
def evaluated(primecli: Any) -> Any:
    def run(*arguments: object) -> dict[str, Any]:
        (report,) = json.loads("\n".join(map(str, primecli("evaluate", *arguments, "--json").paths)))
        return dict(report)

    return run


def value(report: dict[str, Any], name: str, source: str | None = None) -> float:
    part = report["all"] if source is None else report["sources"][source]
    return float(part["metrics"][name]["value"])


def test_a_worked_example(tmp_path: Path, evaluated: Any) -> None:
    report = evaluated(write_shards(tmp_path / "in", with_rewards(samples([4, 2, 0, 1], 4))))
    assert (report["all"]["prompts"], report["all"]["samples"], report["select"]) == (4, 16, "sum")
    assert value(report, "avg@4") == value(report, "pass@1") == 7 / 16
    assert value(report, "pass@4") == 3 / 4
    assert value(report, "pass@2") == pytest.approx((1 + (1 - 1 / 6) + 0 + 1 / 2) / 4, abs=1e-12)
    assert value(report, "best@4") == 1 / 4  # the last sample is right in the first group only
    # two right against 0.5 and \frac{1}{2}, which are equal: a tie. One right against 1/2, 0.5, \frac12: outvoted.
    assert value(report, "maj@4") == pytest.approx((1 + 1 / 2 + 0 + 0) / 4, abs=1e-12)
    interval = report["all"]["metrics"]["pass@4"]
    assert 0 < interval["low"] < 3 / 4 < interval["high"] < 1


def test_answers_that_the_verifier_calls_equal_are_one(tmp_path: Path, evaluated: Any) -> None:
    answers = ["1/2", "0.5", r"\frac{1}{2}", "7", "7"]
    rows = [
        rollout(0, index, 5, outcome_reward=float(answer == "7"), extracted_answer=answer)
        for index, answer in enumerate(answers)
    ]
    assert value(evaluated(write_shards(tmp_path / "in", rows)), "maj@5") == 0.0
    for row in rows[:3]:
        row[schema.EXTRACTED_ANSWER] = f"{row[schema.SAMPLE_INDEX]}/11"
    assert value(evaluated(write_shards(tmp_path / "in", rows)), "maj@5") == 1.0


def test_each_data_source_apart_and_groups_of_one_prompt_together(tmp_path: Path, evaluated: Any) -> None:
    rows = samples([2, 0], 2, data_source="a") + samples([1], 2, data_source="b")
    again = [{**row, schema.GROUP_ID: f"{row[schema.GROUP_ID]}-again"} for row in rows]
    report = evaluated(write_shards(tmp_path / "in", [*rows, *again]))
    assert {name: part["prompts"] for name, part in report["sources"].items()} == {"a": 2, "b": 1}
    assert (value(report, "avg@4", "a"), value(report, "avg@4", "b"), value(report, "avg@4")) == (0.5, 0.5, 0.5)
    assert value(report, "pass@4", "b") == 1.0


def test_programs_have_no_majority(tmp_path: Path, evaluated: Any) -> None:
    report = evaluated(write_shards(tmp_path / "in", samples([1, 2], 2, ability="code")))
    assert not [name for name in report["all"]["metrics"] if name.startswith("maj")]
    assert value(report, "pass@2") == 1.0


def test_a_baseline_is_compared_prompt_by_prompt(tmp_path: Path, evaluated: Any, primecli: Any) -> None:
    ours = write_shards(tmp_path / "ours", samples([2, 1, 1, 2] * 3, 2))
    theirs = write_shards(tmp_path / "theirs", samples([2, 0, 1, 1] * 2, 2))  # 8 of the 12 prompts
    report = evaluated(ours, "--baseline", theirs)
    compared = report["all"]["baseline"]
    assert compared["prompts"] == 8
    difference = compared["differences"]["avg@2"]
    assert difference["value"] == pytest.approx(1 / 4, abs=1e-12)
    assert 0 < difference["low"] < 1 / 4 < difference["high"]
    assert compared["differences"]["pass@2"]["value"] == pytest.approx(1 / 4, abs=1e-12)
    other = write_shards(tmp_path / "other", samples([1], 2, data_source="another"))
    refused = primecli("evaluate", ours, "--baseline", other, check=False)
    assert (refused.code, "has none of the prompts" in refused.line()) == (3, True)


def test_a_step_is_scored_by_the_tokenizer(tmp_path: Path, tiny: Path, evaluated: Any) -> None:
    """The responses are "a\\nb" and "ab\\n": steps of two tokens and one, and of three."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    rows = samples([1], 2)
    for row, text, rewards in zip(rows, ("a\nb", "ab\n"), ([1.0, 1.0, -5.0], [-1.0, 0.0, 0.0]), strict=True):
        row |= {schema.RESPONSE_IDS: tokenizer(text)["input_ids"], schema.PROCESS_REWARDS: rewards}
        assert len(row[schema.RESPONSE_IDS]) == 3
        row[schema.ROLLOUT_LOGPROBS] = [0.0] * 3
    directory = write_shards(tmp_path / "in", rows)

    def best() -> dict[str, float]:
        options = ("--tokenizer", tiny, "--select")
        return {
            select: value(evaluated(directory, *options, select), "best@2") for select in ("sum", "min", "mean", "last")
        }

    # the first: sum -3, steps 2 and -5; the second: sum -1, one step of -1
    assert best() == {"sum": 0.0, "min": 0.0, "mean": 0.0, "last": 0.0}
    rows[0][schema.PROCESS_REWARDS] = [-1.0, -1.0, 3.0]  # sum 1, steps -2 and 3
    write_shards(tmp_path / "in", rows)
    assert best() == {"sum": 1.0, "min": 0.0, "mean": 1.0, "last": 1.0}


def test_the_table(tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(Path("a"), samples([4, 2, 0, 1], 4, data_source="gsm8k") + samples([0, 1], 4, data_source="aime"))
    write_shards(Path("b"), samples([3, 1, 0, 1], 4, data_source="gsm8k"))
    texts = [
        "\n".join(map(str, primecli("evaluate", *arguments).paths))
        for arguments in (["a"], ["a", "b", "--k", 4], ["b", "--baseline", "a", "--k", "1"])
    ]
    check_golden(Path(__file__).parents[1] / "golden" / "evaluate.txt", "\n\n".join(texts) + "\n")


def test_a_row_of_csv_for_each_input_which_a_rerun_replaces(tmp_path: Path, primecli: Any) -> None:
    file = tmp_path / "out" / "leaderboard.csv"
    runs = [write_shards(tmp_path / name, samples(right, 2)) for name, right in (("1", [1, 0]), ("2", [2, 1]))]
    for run in (runs[0], runs[1], runs[0]):
        primecli("evaluate", run, "--csv", file)
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert sorted((row["input"], float(row["avg@2"])) for row in rows) == [(str(runs[0]), 0.25), (str(runs[1]), 0.75)]
    before = file.read_bytes()
    larger = write_shards(tmp_path / "3", samples([1], 3))
    refused = primecli("evaluate", larger, "--csv", file, check=False)
    assert (refused.code, "has other columns" in refused.line()) == (3, True)
    assert file.read_bytes() == before


def test_what_cannot_be_evaluated_is_said(tmp_path: Path, primecli: Any) -> None:
    rows = samples([1, 0], 2)
    cases: list[tuple[list[dict[str, Any]], list[object], str]] = [
        (rows, ["--k", 3], "--k 3: no prompt has 3 graded samples; the most is 2"),
        (rows, ["--select", "sum"], "lacks the column process_rewards"),
        (with_rewards(samples([1], 2)), ["--select", "min"], "--select min needs the tokenizer"),
        ([{**row, schema.OUTCOME_REWARD: None} for row in rows], [], "no sample is graded"),
        ([{key: row[key] for key in row if key != schema.OUTCOME_REWARD} for row in rows], [], "lacks the column outc"),
    ]
    for number, (made, options, message) in enumerate(cases):
        refused = primecli("evaluate", write_shards(tmp_path / str(number), made), *options, check=False)
        assert refused.code == 3, message
        assert message in refused.line()


def test_no_right_answer_and_groups_of_one(tmp_path: Path, evaluated: Any) -> None:
    report = evaluated(write_shards(tmp_path / "in", samples([0, 0, 0], 1)))
    assert {name: metric["value"] for name, metric in report["all"]["metrics"].items()} == {
        "avg@1": 0.0,
        "pass@1": 0.0,
        "maj@1": 0.0,
    }


def test_it_leaves_an_evaluation_beside_a_whole_directory_only(tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", samples([1, 0, 2, 1], 2), per_shard=4)
    first = next(directory.glob("*.parquet"))
    primecli("evaluate", first)
    assert not (directory / "_evaluation.json").exists()
    primecli("evaluate", directory)
    left = json.loads((directory / "_evaluation.json").read_text())
    assert left["all"]["metrics"]["avg@2"]["value"] == 0.5
    primecli("stats", f"{directory}/*")  # a glob does not take it for a shard
