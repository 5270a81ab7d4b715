from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primecli.shards import schema
from tests.builders import rollout, write_shards

STEPS: list[tuple[str, list[float], int | None]] = [
    ("easy", [1.0, 0.5, 0.5], -1),
    ("easy", [1.0, -2.0, 0.5], 1),
    ("easy", [2.0, 1.0], -1),
    ("easy", [-1.0, 3.0], 0),
    ("hard", [0.5, -0.2, 1.0], -1),
    ("hard", [0.5, 0.5, -3.0], 2),
    ("hard", [0.5, -0.6, -3.0], 1),
    ("hard", [1.0, 1.0], None),
]
"""A data source, the reward of each step, the first wrong one."""


def rows(steps: list[tuple[str, list[float], int | None]] = STEPS) -> list[dict[str, Any]]:
    """One response to each prompt; a step has two tokens, the first with all but a tenth of its reward."""
    made = []
    for number, (source, rewards, first) in enumerate(steps):
        tokens = [part for reward in rewards for part in (reward - 0.1, 0.1)]
        columns = {
            schema.DATA_SOURCE: source,
            schema.RESPONSE_IDS: list(range(len(tokens))),
            schema.ROLLOUT_LOGPROBS: [0.0] * len(tokens),
            schema.PROCESS_REWARDS: tokens,
            schema.STEP_ENDS: list(range(1, len(tokens), 2)),
            schema.FIRST_WRONG_STEP: first,
        }
        made.append(rollout(number, 0, 1, **columns))
    return made


@pytest.fixture
def evaluated(tmp_path: Path, primecli: Any) -> Any:
    directory = write_shards(tmp_path / "in", rows())

    def run(*options: object) -> dict[str, Any]:
        done = primecli("evaluate", directory, "--step-labels", "--json", *options)
        (report,) = json.loads("\n".join(map(str, done.paths)))
        return dict(report)

    return run


def values(part: dict[str, Any]) -> list[float]:
    return [part[name]["value"] for name in ("f1", "wrong-found", "right-passed")]


def test_the_threshold_of_one_source_is_used_on_the_others(evaluated: Any) -> None:
    report = evaluated("--threshold-from", "easy")
    assert (report["threshold_from"], report["unlabelled"], report["all"]["responses"]) == ("easy", 1, 7)
    prefix, step = report["methods"]["prefix"], report["methods"]["step"]
    # prefixes: 1 1.5 2 | 1 -1 -0.5 | 2 3 | -1 2, so anything above -1 and up to 1 is perfect on easy
    assert -1 < prefix["threshold"] <= 1
    assert values(prefix["sources"]["easy"]) == [1.0, 1.0, 1.0]
    assert prefix["threshold"] == pytest.approx(0.0, abs=1e-6)  # in the middle
    # hard: 0.5 0.3 1.3 | 0.5 1 -2 | 0.5 -0.1 -3.1
    assert values(prefix["sources"]["hard"]) == [1.0, 1.0, 1.0]
    assert (prefix["mean_f1"], values(prefix["all"])) == (1.0, [1.0, 1.0, 1.0])
    # steps: perfect on easy above -1 and up to 0.5; hard: 0.5 -0.2 | 0.5 0.5 -3 | 0.5 -0.6 -3
    assert step["threshold"] == pytest.approx(-0.25, abs=1e-6)
    assert values(step["sources"]["hard"]) == [1.0, 1.0, 1.0]


def test_the_outcome_baseline_chance_and_the_lowest_step(evaluated: Any) -> None:
    report = evaluated("--threshold-from", "easy")
    # sums: easy 2 -0.5 3 2, of which the wrong ones are 2 and 4 and end in another step; hard 1.3 -2 -3.1
    outcome = report["methods"]["outcome"]
    assert values(outcome["sources"]["easy"])[:2] == [0.0, 0.0]
    share = (1 / 3 + 1 / 2) / 2
    assert report["sources"]["easy"]["chance_f1"] == pytest.approx(2 * share / (1 + share**0.5) ** 2, abs=1e-12)
    assert report["sources"]["hard"]["last-lowest"]["value"] == pytest.approx(2 / 3)
    assert report["sources"]["easy"]["last-lowest"]["value"] == 1 / 4
    assert report["sources"]["easy"]["last-lowest-chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 2) / 4)


def test_a_given_threshold_and_other_scores(evaluated: Any) -> None:
    report = evaluated("--threshold", -0.7, "--by", "step")
    assert (report["threshold_from"], list(report["methods"])) == (None, ["step", "outcome"])
    # hard: the step of -0.6 passes, and the one of -3 after it is called the first wrong one
    assert values(report["methods"]["step"]["sources"]["hard"]) == [pytest.approx(2 / 3), 0.5, 1.0]
    assert list(evaluated("--threshold", 0)["methods"]) == ["prefix", "outcome"]
    means = evaluated("--by", "prefix-mean", "--by", "step-mean")["methods"]
    assert list(means) == ["prefix-mean", "step-mean", "outcome"]
    assert means["step-mean"]["threshold"] == pytest.approx(
        evaluated("--by", "step")["methods"]["step"]["threshold"] / 2
    )


def test_the_table_says_where_the_threshold_comes_from(tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rows())
    printed = [str(line) for line in primecli("evaluate", directory, "--step-labels").paths]
    assert (
        "7 responses, 4 of them with a wrong step; 2.7 steps each on average; 1 without step labels left" in printed[0]
    )
    assert "so F1 is optimistic: see --threshold-from" in printed[1]
    assert [line.split()[0] for line in printed if line.split() and not line.startswith(" ")][3:] == [
        "by",
        "by",
        "outcome",
        "by",
        "lowest",
    ]
    text = "\n".join(map(str, primecli("evaluate", directory, "--step-labels", "--threshold-from", "hard").paths))
    assert "thresholds have the best F1 on hard" in text
    only = write_shards(tmp_path / "only", rows(STEPS[:4]))
    text = "\n".join(map(str, primecli("evaluate", only, "--step-labels", "--threshold", 0.5).paths))
    assert "by prefix (threshold 0.5)" in text
    assert "mean" not in text.replace("harmonic", "")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--threshold-from", "olympiad"],
            3,
            "no such data source among the labelled responses (there are easy, hard)",
        ),
        (["--threshold", 0, "--threshold-from", "easy"], 2, "--threshold goes without --threshold-from"),
        (["--threshold", 0, "--by", "step", "--by", "prefix"], 2, "--threshold goes without several --by"),
        (["--k", 2], 2, "--k goes without --step-labels"),
        (["--csv", "x.csv"], 2, "--csv goes without --step-labels"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[object], code: int, message: str, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "in", rows())
    refused = primecli("evaluate", directory, "--step-labels", *options, check=False)
    assert (refused.code, message in refused.line()) == (code, True)


def test_directories_are_apart_and_their_shards_together(tmp_path: Path, primecli: Any) -> None:
    easy, hard = write_shards(tmp_path / "easy", rows(STEPS[:4])), write_shards(tmp_path / "hard", rows(STEPS[4:]))
    command = ["evaluate", easy, hard, "--step-labels"]
    apart = primecli(*command, "--threshold-from", "easy", check=False)
    assert (
        f"no such data source among the labelled responses of {hard} (there is hard; name DIR/*.parquet" in apart.line()
    )
    text = "\n".join(map(str, primecli(*command).paths))
    assert f"{easy}: 4 responses" in text
    assert f"{hard}: 3 responses" in text
    text = str(primecli("evaluate", f"{tmp_path}/*/*.parquet", "--step-labels", "--threshold-from", "easy").paths[0])
    assert "7 responses" in text


def test_shards_that_lack_something_are_one_line_each(tmp_path: Path, primecli: Any) -> None:
    def line(name: str, made: list[dict[str, Any]], *options: object) -> str:
        refused = primecli("evaluate", write_shards(tmp_path / name, made), "--step-labels", *options, check=False)
        assert refused.code == 3
        return str(refused.line())

    def without(column: str) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != column} for row in rows()]

    assert "lacks the column process_rewards (made by `primecli score-prm`)" in line("a", without("process_rewards"))
    assert "lacks the column first_wrong_step (made by `primecli import`)" in line("b", without("first_wrong_step"))
    null = [{**row, schema.FIRST_WRONG_STEP: None} for row in rows()]
    assert "no response says which step is wrong: first_wrong_step is null in all 8 rows" in line("c", null)
    right = [{**row, schema.FIRST_WRONG_STEP: -1} for row in rows()]
    assert "the threshold: there is no response with a wrong step to find it on" in line("d", right)
    wrong = [{**row, schema.FIRST_WRONG_STEP: 0} for row in rows()]
    message = line("e", wrong, "--threshold-from", "easy")
    assert "--threshold-from easy: there is no response without a wrong step to find it on" in message
    outside = [{**row, schema.FIRST_WRONG_STEP: 3} for row in rows()]
    assert "first_wrong_step is 3 at row 0, and the response has 3 steps" in line("f", outside)
    refused = primecli("evaluate", tmp_path / "a", "--by", "step", check=False)
    assert (refused.code, "--by goes with --step-labels" in refused.line()) == (2, True)
