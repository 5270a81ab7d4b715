"""compute-advantages with the forms, baselines, shares and trust of process rewards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli import cli
from primecli.shards import schema
from primecli.shards.parquet import read_footer
from tests.builders import rollout, rollouts, write_shards
from tests.conftest import read_rows, summary
from tests.core.reference_2 import CASES_2, NAMES_2

each_case = pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)
BARE = ["--process-norm", "none", "--no-whiten"]


def shards_of(
    directory: Path,
    groups: list[int],
    rewards: list[list[float]],
    outcomes: list[float],
    step_ends: list[list[int]] | None = None,
) -> Path:
    """Responses with these process rewards per token."""
    rows = []
    for row, (group, own) in enumerate(zip(groups, rewards, strict=True)):
        made: dict[str, Any] = {
            schema.RESPONSE_IDS: [1] * len(own),
            schema.ROLLOUT_LOGPROBS: [-1.0] * len(own),
            schema.PROCESS_REWARDS: own,
        }
        if step_ends is not None:
            made[schema.STEP_ENDS] = step_ends[row]
        made[schema.OUTCOME_REWARD] = outcomes[row]
        rows.append(rollout(group, groups[:row].count(group), groups.count(group), **made))
    return write_shards(directory, rows)


def of_case(case: dict[str, Any], directory: Path, rewards: str = "prm_minus_ref_logprobs") -> Path:
    inputs = case["inputs"]
    cut = [row[:length] for row, length in zip(inputs[rewards], case["lengths"], strict=True)]
    return shards_of(directory, case["group_index"], cut, inputs["outcome_reward"])


def column(directory: Path, name: str = schema.ADVANTAGES) -> list[list[float]]:
    return [row[name] for row in read_rows(directory)]


def close(found: list[list[float]], expected: list[list[float]], lengths: list[int] | None = None) -> None:
    for number, (ours, reference) in enumerate(zip(found, expected, strict=True)):
        assert lengths is None or len(ours) == lengths[number]
        np.testing.assert_allclose(ours, reference[: len(ours)], atol=1e-6, rtol=1e-6)


def turns_alone(case: dict[str, Any]) -> tuple[list[list[float]], list[list[int]]]:
    """ITPO's token rewards without the tokens between turns, and the ends of its turns."""
    itpo, rewards, ends = case["expected"]["itpo"], [], []
    for turn_mask, own in zip(itpo["turn_mask"], itpo["token_implicit_rewards"], strict=True):
        places = np.flatnonzero(turn_mask)
        rewards.append([own[place] for place in places])
        ends.append(np.flatnonzero(np.diff(places, append=places[-1] + 2) > 1).tolist())
    return rewards, ends


def within_bounds(outcomes: list[float]) -> tuple[list[float], float]:
    """Outcomes moved and scaled into what an outcome reward may be, and the factor that undoes the scale."""
    low, high = min(outcomes), max(outcomes)
    return [(outcome - low) / (high - low) for outcome in outcomes], high - low


@each_case
def test_steps_are_centred_as_in_itpo(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    itpo = case["expected"]["itpo"]
    rewards, ends = turns_alone(case)
    outcomes, factor = within_bounds(itpo["outcome"])
    directory = shards_of(tmp_path / "score-prm", case["group_index"], rewards, outcomes, ends)
    options = ["--granularity", "step", "--process-baseline", "recipe", "--process-norm", "none", "--outcome-coef"]
    for expected in itpo["advantage_variants"]:
        if expected["estimator"] == "rloo_itpo":
            out = tmp_path / f"out{expected['outcome_coef']}"
            primecli("compute-advantages", directory, *options, factor * expected["outcome_coef"], "--out", out)
            close(column(out), in_turns(expected["advantages_whitened"], itpo))


def in_turns(rows: list[list[float]], itpo: dict[str, Any]) -> list[list[float]]:
    return [[value for value, turn in zip(row, own, strict=True) if turn] for row, own in zip(
        rows, itpo["turn_mask"], strict=True
    )]  # fmt: skip


@each_case
def test_redistribution_through_the_command(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    """The shares are ITPO's; with outcomes of 1 the credits are these shares."""
    itpo = case["expected"]["itpo"]
    rewards, ends = turns_alone(case)
    directory = shards_of(tmp_path / "score-prm", case["group_index"], rewards, [1.0] * len(rewards), ends)
    options = ["--estimator", "reinforce", "--granularity", "step", "--process-form", "redistributed", *BARE]
    options += ["--process-lambda", "0", "--outcome-coef", "0", "--process-temperature"]
    for expected in itpo["proportions"]:
        out = tmp_path / f"out{expected['temperature']}"
        primecli("compute-advantages", directory, *options, expected["temperature"], "--out", out)
        for found, own, shares in zip(column(out), ends, expected["softmax_of_sums"], strict=True):
            assert [found[end] for end in own] == pytest.approx(shares, abs=1e-6)


@each_case
def test_the_min_form_gives_what_pure_does(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    form = case["expected"]["pure_min_form"]
    rewards = []
    for length, ends, steps in zip(case["lengths"], case["step_ends"], form["raw_step_rewards"], strict=True):
        rewards.append([0.0] * length)
        for end, reward in zip(ends, steps, strict=False):
            rewards[-1][end] = reward
    outcomes = case["inputs"]["outcome_reward"]
    directory = shards_of(tmp_path / "score-prm", case["group_index"], rewards, outcomes, case["step_ends"])
    options = ["--granularity", "step", "--process-form", "min", *BARE, "--outcome-coef"]
    for expected in case["expected"]["pure_rloo"]["variants"]:
        if expected["baseline"] == "step":
            out = tmp_path / f"out{expected['verifier_coef']}"
            primecli("compute-advantages", directory, *options, expected["verifier_coef"], "--out", out)
            close(column(out), expected["returns"], case["lengths"])


@each_case
def test_pooled_steps_give_what_istar_does(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    istar = case["expected"]["istar"]
    names = list(dict.fromkeys(istar["row_trajectory"]))
    steps: dict[str, list[list[float]]] = {name: [] for name in names}
    for name, row, own in zip(istar["row_trajectory"], istar["step_token_rewards"], istar["row_mask"], strict=True):
        steps[name].append([reward for reward, here in zip(row, own, strict=True) if here])
    rewards = [[reward for step in steps[name] for reward in step] for name in names]
    ends = [(np.cumsum([len(step) for step in steps[name]]) - 1).tolist() for name in names]
    groups = [int(name.split("-")[0]) for name in names]
    directory = shards_of(tmp_path / "score-prm", groups, rewards, [0.0] * len(names), ends)
    options = ["--granularity", "step", "--process-baseline", "pooled", "--process-lambda", 0, "--outcome-coef", 0]
    primecli("compute-advantages", directory, *options, *BARE)
    (expected,) = (
        variant["advantages"]
        for variant in istar["variants"]
        if (variant["estimator"], variant["dedup_by"]) == ("rloo_process_only", "every_row")
    )
    by_trajectory: dict[str, list[float]] = {name: [] for name in names}
    for name, row, own in zip(istar["row_trajectory"], expected, istar["row_mask"], strict=True):
        by_trajectory[name] += row[: sum(own)]
    close(column(tmp_path / "compute-advantages"), [by_trajectory[name] for name in names])


@each_case
def test_values_give_what_ipvrm_does(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    """Its statistics are over the whole mini-batch, so that here all responses are one group."""
    expected = case["expected"]["ipvrm_token_advantage"]["variants"][2]
    one_group = {**case, "group_index": [0] * len(case["lengths"])}
    directory = of_case(one_group, tmp_path / "score-prm")
    options = ["--process-baseline", "values", "--process-lambda", expected["lam"], "--drop-last-token-reward"]
    options += ["--process-gamma", expected["gamma"], "--estimator", "grpo", "--outcome-coef", 0]
    primecli("compute-advantages", directory, *options)
    outcome, groups = np.array(case["inputs"]["outcome_reward"]), np.array(case["group_index"])
    wanted = []
    for row, own in enumerate(expected["advantages"]):
        same = outcome[groups == groups[row]]
        by_outcome = (outcome[row] - same.mean()) / max(same.std(), 1e-6)
        wanted.append([(value - by_outcome) / expected["process_coef"] for value in own])
    close(column(tmp_path / "compute-advantages"), wanted, case["lengths"])


@each_case
def test_two_sources_normalised_apart_give_what_gdpo_does(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    components = np.array(case["inputs"]["reward_components"])
    rewards = [[0.0] * (length - 1) + [float(own[1])] for length, own in zip(case["lengths"], components, strict=True)]
    directory = shards_of(tmp_path / "score-prm", case["group_index"], rewards, components[:, 0].tolist())
    primecli("compute-advantages", directory, "--estimator", "gdpo", "--granularity", "whole")
    expected = case["expected"]["gdpo_verl"]["variants"][0]["advantages"]
    close(column(tmp_path / "compute-advantages"), expected, case["lengths"])


@each_case
def test_the_outcome_estimators_through_the_command(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    directory = of_case(case, tmp_path / "score-prm")
    expected = case["expected"]["outcome_estimators_verl"]["outcome_reward"]
    maxrl = [[value] * length for value, length in zip(
        case["expected"]["maxrl"]["prime_rl_outcome_reward"], case["lengths"], strict=True
    )]  # fmt: skip
    for name, options, values in (
        ("reinforce++", ["--outcome-gamma", 0.9], expected["reinforce_plus_plus"][1]["advantages"]),
        ("reinforce++-baseline", [], expected["reinforce_plus_plus_baseline"]),
        ("maxrl", ["--no-whiten"], maxrl),
    ):
        out = tmp_path / name
        primecli("compute-advantages", directory, "--estimator", name, "--process-coef", 0, *options, "--out", out)
        close(column(out), values, case["lengths"])


def test_reinforce_plus_plus_takes_process_rewards_per_token(tmp_path: Path, primecli: Any) -> None:
    case = CASES_2[0]
    inputs = case["inputs"]
    cut = [row[:length] for row, length in zip(inputs["token_rewards"], case["lengths"], strict=True)]
    outcomes, factor = within_bounds(inputs["scalar_reward"])  # where they begin is whitened away
    directory = shards_of(tmp_path / "in", case["group_index"], cut, outcomes)
    options = ["--estimator", "reinforce++", "--process-norm", "none", "--outcome-coef", factor]
    primecli("compute-advantages", directory, *options)
    expected = case["expected"]["outcome_estimators_verl"]["token_rewards_plus_scalar_reward"]
    close(column(tmp_path / "compute-advantages"), expected["reinforce_plus_plus_advantages"], case["lengths"])


def test_progrs_and_spro_worked_by_hand(tmp_path: Path, primecli: Any) -> None:
    rewards = [[0.5, 1.5], [4.0], [2.0, 0.0, 1.0]]
    directory = shards_of(tmp_path / "score-prm", [0, 0, 0], rewards, [1.0, 0.0, 0.0])
    options = [
        "--estimator",
        "reinforce",
        "--process-form",
        "wrong-centered",
        "--process-gamma",
        0,
        "--outcome-coef",
        0,
    ]
    primecli("compute-advantages", directory, *options, *BARE, "--out", tmp_path / "progrs")
    # the wrong responses' means are 4 and 1, whose mean is 2.5
    close(column(tmp_path / "progrs"), [[0.5, 1.5], [1.5], [-0.5, -2.5, -1.5]])
    options = ["--estimator", "dr-grpo", "--process-baseline", "position"]
    primecli("compute-advantages", directory, *options, *BARE, "--out", tmp_path / "spro")
    # running sums 0.5 2, 4, 2 2 3: means 6.5 / 3 and 2, and the third token stands alone; outcomes minus 1 / 3
    close(
        column(tmp_path / "spro"),
        [[0.5 - 6.5 / 3 + 2 / 3, 2 / 3], [4 - 6.5 / 3 - 1 / 3], [2 - 6.5 / 3 - 1 / 3, -1 / 3, -1 / 3]],
    )


def test_the_others_reward_per_token(tmp_path: Path, primecli: Any) -> None:
    rewards, ends = [[1.0, 1.0, 4.0], [3.0], [2.0, 0.0]], [[1, 2], [0], [1]]
    directory = shards_of(tmp_path / "score-prm", [0, 0, 0], rewards, [1.0, 0.0, 0.0], ends)
    options = ["--granularity", "step", "--process-baseline", "per-token", "--process-lambda", 0, "--outcome-coef", 0]
    primecli("compute-advantages", directory, *options, *BARE)
    # steps 2 (of two tokens) and 4; 3; 2 (of two). The others' rewards per token: 5 / 3, 8 / 5, 9 / 4
    close(
        column(tmp_path / "compute-advantages"),
        [[2 - 10 / 3, 2 - 10 / 3, 4 - 5 / 3], [3 - 8 / 5], [2 - 9 / 2, 2 - 9 / 2]],
    )


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--estimator", "grpo", "--process-gamma", "0"],
        ["--process-form", "redistributed", "--process-norm", "none"],
        ["--process-baseline", "values", "--estimator", "dr-grpo", "--process-lambda", "0.9"],
        ["--process-baseline", "position"],
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.07, 1.0])
def test_process_rewards_take_their_share(options: list[str], share: float, tmp_path: Path, primecli: Any) -> None:
    directory = of_case(CASES_2[0], tmp_path / "score-prm")
    primecli("compute-advantages", directory, "--process-share", share, *options)
    parts = (np.concatenate(column(tmp_path / "compute-advantages", name)) for name in PARTS)
    outcome, process = (float(part.var()) for part in parts)
    assert process / (process + outcome) == pytest.approx(share, abs=1e-5)
    assert summary(tmp_path / "compute-advantages")["metrics"]["process_share"] == pytest.approx(share, abs=1e-6)


PARTS = (schema.OUTCOME_ADVANTAGES, schema.PROCESS_ADVANTAGES)


def test_without_variance_the_other_source_stands_alone(tmp_path: Path, primecli: Any) -> None:
    silent = shards_of(tmp_path / "1", [0, 0], [[0.2, 0.2], [0.2]], [1.0, 0.0])
    primecli("compute-advantages", silent, "--process-share", 0.5, "--no-whiten", "--out", tmp_path / "a")
    assert column(tmp_path / "a") == [[1.0, 1.0], [-1.0]]
    equal = shards_of(tmp_path / "2", [0, 0], [[0.2, 0.2], [0.5]], [1.0, 1.0])
    primecli("compute-advantages", equal, "--process-share", 0.5, *BARE, "--out", tmp_path / "b")
    close(column(tmp_path / "b"), [[-0.6, -0.3], [0.3]])
    assert summary(tmp_path / "b")["metrics"]["process_share"] == 1.0


@pytest.fixture(scope="module")
def trusted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: the tiny model as PRM, an update of it, and both sets of scores."""
    run = tmp_path_factory.mktemp("trusted")
    graded = write_shards(run / "verify", rollouts(4, 3), per_shard=6)

    def primecli(*arguments: object) -> None:
        assert cli.run([str(argument) for argument in arguments]) == 0

    update = ["--ref", "rollout", "--lr", 1e-3, "--mini-batch", 6, "--quiet"]
    primecli("update-prm", graded, "--prm", tiny, *update, "--epochs", 4, "--checkpoint", run / "first")
    rows = rollouts(4, 3)
    for row in rows[:3]:  # a group that the first update taught the PRM to get wrong
        row[schema.OUTCOME_REWARD] = 1.0 - row[schema.OUTCOME_REWARD]
    unseen = write_shards(run / "unseen", rows)
    primecli(
        "update-prm", unseen, "--prm", run / "first", *update, "--lr", 1e-2, "--epochs", 8, "--checkpoint", run / "prm"
    )
    primecli("update-prm", graded, "--prm", tiny, *update, "--checkpoint", run / "unmeasured", "--no-evaluate")
    for name, prm in (("never", tiny), ("scored", run / "prm"), ("unmeasured-scored", run / "unmeasured")):
        primecli("score-prm", graded, "--prm", prm, "--ref", "rollout", "--out", run / name, "--quiet")
    return run


TRUST = ["--process-share", 0.8, "--process-trust"]


def test_trust_travels_from_the_update_to_the_advantages(trusted: Path, tmp_path: Path, primecli: Any) -> None:
    measured = summary(trusted / "prm")["metrics"]
    accuracy = measured["pair_accuracy_before"]
    assert 0.5 < accuracy < 1
    assert accuracy != measured["pair_accuracy_after"]
    shard = sorted((trusted / "scored").glob("*.parquet"))[0]
    assert read_footer(shard).provenance[-1]["prm_pair_accuracy"] == accuracy
    primecli("compute-advantages", trusted / "scored", *TRUST, "--out", tmp_path / "out")
    written = summary(tmp_path / "out")
    assert written["metrics"]["prm_pair_accuracy"] == accuracy
    assert written["metrics"]["process_trust"] == pytest.approx(max(0.0, 2 * accuracy - 1))
    assert written["metrics"]["process_share"] == pytest.approx(0.8 * max(0.0, 2 * accuracy - 1), abs=1e-6)
    assert written["config"]["prm_pair_accuracy"] == accuracy
    record = read_footer(sorted((tmp_path / "out").glob("*.parquet"))[0])
    assert record.provenance[-1]["config"]["prm_pair_accuracy"] == accuracy
    assert record.recipe is not None
    assert record.recipe["config"]["prm_pair_accuracy"] == accuracy  # and so it is hashed


def test_a_prm_that_was_never_updated_has_no_say(trusted: Path, tmp_path: Path, primecli: Any) -> None:
    primecli("compute-advantages", trusted / "never", *TRUST, "--out", tmp_path / "out")
    metrics = summary(tmp_path / "out")["metrics"]
    assert (metrics["process_trust"], metrics["process_share"]) == (0.0, 0.0)
    assert "prm_pair_accuracy" not in metrics
    primecli("compute-advantages", trusted / "never", "--process-coef", 0, "--out", tmp_path / "alone")
    assert column(tmp_path / "out") == column(tmp_path / "alone")


def test_another_accuracy_is_another_result(trusted: Path, tmp_path: Path, primecli: Any) -> None:
    """Even if the weights, and so the process rewards, are the same."""
    shutil.copytree(trusted / "prm", tmp_path / "prm")
    path = tmp_path / "prm" / "trainer" / "primecli.json"
    record = json.loads(path.read_text())
    record["provenance"][-1]["prm_pair_accuracy"] = 0.625
    path.write_text(json.dumps(record))
    primecli("score-prm", trusted / "verify", "--prm", tmp_path / "prm", "--ref", "rollout", "--out", tmp_path / "s")
    out = ["--out", tmp_path / "out"]
    primecli("compute-advantages", trusted / "scored", *TRUST, *out)
    failed = primecli("compute-advantages", tmp_path / "s", *TRUST, *out, check=False)
    assert failed.code == 1
    assert re.search(r"different run: prm_pair_accuracy was 0\.\d+, is 0\.625 \(", failed.line())


@pytest.mark.parametrize(
    ("name", "words"),
    [("unmeasured-scored", "without --no-evaluate"), ("verify", "score again with score-prm")],
)
def test_trust_needs_a_measurement(name: str, words: str, trusted: Path, tmp_path: Path, primecli: Any) -> None:
    directory = trusted / name
    if name == "verify":  # scored by another tool
        rows = [{**row, schema.PROCESS_REWARDS: [0.1] * len(row[schema.RESPONSE_IDS])} for row in read_rows(directory)]
        directory = write_shards(tmp_path / "elsewhere", rows)
    failed = primecli("compute-advantages", directory, *TRUST, "--out", tmp_path / "out", check=False)
    assert failed.code == 3
    assert "does not say how well its PRM ranked" in failed.line()
    assert words in failed.line()


def test_shards_of_two_prms_are_refused(trusted: Path, tmp_path: Path, primecli: Any) -> None:
    first, second = (sorted((trusted / name).glob("*.parquet")) for name in ("scored", "never"))
    failed = primecli("compute-advantages", first[0], second[1], *TRUST, "--out", tmp_path / "out", check=False)
    assert (failed.code, "scored by different PRMs" in failed.line()) == (3, True)


def test_a_batch_without_pairs_leaves_what_was_measured_before(trusted: Path, tmp_path: Path, primecli: Any) -> None:
    alike = write_shards(tmp_path / "verify", rollouts(2, 2, outcome_reward=1.0))
    options = ["--ref", "rollout", "--mini-batch", 4, "--quiet", "--checkpoint", tmp_path / "prm"]
    primecli("update-prm", alike, "--prm", trusted / "prm", *options)
    record = json.loads((tmp_path / "prm" / "trainer" / "primecli.json").read_text())
    assert record["provenance"][-1]["prm_pair_accuracy"] is None
    primecli("score-prm", trusted / "verify", "--prm", tmp_path / "prm", "--ref", "rollout", "--out", tmp_path / "s")
    footer = read_footer(sorted((tmp_path / "s").glob("*.parquet"))[0])
    before = summary(trusted / "prm")["metrics"]["pair_accuracy_before"]
    assert footer.provenance[-1]["prm_pair_accuracy"] == before


@pytest.mark.parametrize(
    "options",
    [
        [],
        BARE,
        ["--granularity", "step"],
        ["--process-form", "min"],
        ["--process-share", "0.5"],
        ["--estimator", "grpo"],
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_a_limit_of_process_rewards_is_that_of_each_token(options: list[str], tmp_path: Path, primecli: Any) -> None:
    rewards = [[0.2, -4.0, 0.5], [3.0, 2.0], [0.1, -0.1, -0.6, 0.0], [-0.5, 0.3]]
    clipped = [[max(-0.5, min(0.5, reward)) for reward in row] for row in rewards]
    ends = [[1, 2], [1], [0, 3], [0, 1]]
    for name, given, limit in (("limited", rewards, ["--process-clip", "0.5"]), ("by-hand", clipped, [])):
        directory = shards_of(tmp_path / name / "score-prm", [0, 0, 1, 1], given, [1.0, 0.0, 0.0, 1.0], ends)
        primecli("compute-advantages", directory, *options, *limit, "--out", tmp_path / name / "out")
    for name in (schema.ADVANTAGES, schema.RETURNS, schema.PROCESS_ADVANTAGES):
        assert column(tmp_path / "limited" / "out", name) == column(tmp_path / "by-hand" / "out", name)
    metrics = summary(tmp_path / "limited" / "out")["metrics"]
    assert metrics["process_clip_fraction"] == pytest.approx(4 / 11)  # -4, 3, 2 and -0.6; 0.5 is not beyond 0.5
    assert "process_clip_fraction" not in summary(tmp_path / "by-hand" / "out")["metrics"]


def test_a_limit_that_no_reward_reaches_changes_nothing(tmp_path: Path, primecli: Any) -> None:
    directory = shards_of(tmp_path / "score-prm", [0, 0], [[0.2, -0.4], [0.1]], [1.0, 0.0])
    for name, limit in (("without", []), ("with", ["--process-clip", "0.5"])):
        primecli("compute-advantages", directory, *limit, "--out", tmp_path / name)
    assert column(tmp_path / "with") == column(tmp_path / "without")
    assert summary(tmp_path / "with")["metrics"]["process_clip_fraction"] == 0.0


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_a_limit_is_positive(limit: str, tmp_path: Path, primecli: Any) -> None:
    result = primecli("compute-advantages", tmp_path, "--process-clip", limit, check=False)
    assert (result.code, "--process-clip" in result.err) == (2, True)
