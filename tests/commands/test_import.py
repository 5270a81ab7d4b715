from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from primecli.models.token_text import Speller
from primecli.shards import schema
from tests.conftest import read_rows, summary
from tests.generation.templates import ENDED

EOS = 256
ROWS = [
    {"prompt": "1+1=", "response": "2", "label": 1, "answer": "2"},
    {"prompt": "3+4=", "response": "7!", "label": 1, "data_source": "sums"},
    {"prompt": "1+1=", "response": "3", "label": 0, "answer": "2"},
]
STEPS = [
    {"problem": "1+1=", "steps": ["one", "two €", "2"], "label": -1, "final_answer_correct": True},
    {"problem": "2+2=", "steps": ["one", "5"], "label": 1, "final_answer_correct": False},
    {"problem": "2+3=", "steps": ["one", "5"], "label": 0, "final_answer_correct": True},
]


@pytest.fixture(scope="module")
def ended(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template that ends each message with <eos>."""
    model = tmp_path_factory.mktemp("models") / "ended"
    shutil.copytree(tiny, model)
    (model / "chat_template.jinja").write_text(ENDED)
    return model


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_shards_are_as_if_the_responses_had_been_sampled(ended: Path, tmp_path: Path, primecli: Any) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    done = primecli("import", file, "--model", ended, "--out", tmp_path / "import")
    assert "every response ends with <eos>" in done.err
    first, second, other = read_rows(done.paths)
    assert [row[schema.RESPONSE] for row in (first, second, other)] == ["2", "3", "7!"]  # groups by prompt
    assert [row[schema.GROUP_ID] for row in (first, second)] == [f"{first[schema.PROMPT_ID]}@0"] * 2
    assert [(row[schema.SAMPLE_INDEX], row[schema.GROUP_SIZE]) for row in (first, second, other)] == [
        (0, 2),
        (1, 2),
        (0, 1),
    ]
    assert first[schema.PROMPT] == "user: 1+1=<eos>\nassistant: "
    speller = Speller(ended)
    for row in (first, second, other):
        assert "".join(speller.texts(row[schema.PROMPT_IDS])) == row[schema.PROMPT]
        assert "".join(speller.texts(row[schema.RESPONSE_IDS])) == f"{row[schema.RESPONSE]}<eos>"
        assert row[schema.RESPONSE_IDS][-1] == EOS
        assert row[schema.FINISH_REASON] == "stop"
    assert [(row[schema.OUTCOME_REWARD], row[schema.VERDICT]) for row in (first, second)] == [
        (1.0, "correct"),
        (0.0, "wrong"),
    ]
    assert (first[schema.DATA_SOURCE], other[schema.DATA_SOURCE], first[schema.GROUND_TRUTH]) == ("a", "sums", "2")
    assert not {schema.STEP_ENDS, schema.ROLLOUT_LOGPROBS, schema.POLICY_FINGERPRINT} & set(first)
    assert summary(tmp_path / "import")["metrics"] == {"response_tokens": 7 / 3, "accuracy": pytest.approx(2 / 3)}
    primecli("validate", tmp_path / "import")


def test_steps_and_their_labels_come_along(ended: Path, tmp_path: Path, primecli: Any) -> None:
    file = write(tmp_path / "steps.jsonl", STEPS)
    done = primecli("import", file, "--model", ended, "--out", tmp_path / "import")
    assert "steps are joined by an empty line" in done.err
    rows = read_rows(done.paths)
    assert [row[schema.FIRST_WRONG_STEP] for row in rows] == [-1, 1, 0]
    assert [row[schema.OUTCOME_REWARD] for row in rows] == [1.0, 0.0, 1.0]
    assert rows[0][schema.RESPONSE] == "one\n\ntwo €\n\n2"
    # a byte a token: "one\n\n", "two €\n\n" and "2<eos>", in which € takes three
    assert rows[0][schema.STEP_ENDS] == [4, 13, 15]
    assert "3 rows in 1 shard: no problems found" in str(primecli("validate", tmp_path / "import").paths[0])


def test_step_labels_alone_decide_the_outcome(ended: Path, tmp_path: Path, primecli: Any) -> None:
    ratings = [[1, 0, 1], [1, -1], [1]]
    rows = [
        {"problem": f"{number}", "steps": ["a"] * max(len(one), 2), "labels": one} for number, one in enumerate(ratings)
    ]
    file = write(tmp_path / "steps.jsonl", rows)
    common = ["import", file, "--model", ended, "--out", tmp_path / "import"]
    done = primecli(*common, check=False)
    assert (done.code, "1 whose step labels do not say which step is the first wrong one" in done.err) == (4, True)
    assert "a step is wrong if its label is below 0, and 0 is neutral" in done.err
    assert "3 responses have step labels alone: the outcome is 1 where no step is wrong" in done.err
    found = read_rows(done.paths)
    assert [(row[schema.FIRST_WRONG_STEP], row[schema.OUTCOME_REWARD]) for row in found] == [(-1, 1.0), (1, 0.0)]
    assert primecli(*common, "--max-errors", 1).paths == done.paths  # the same recipe


def test_labels_of_other_scales_become_rewards(ended: Path, tmp_path: Path, primecli: Any) -> None:
    signed = [{"prompt": "a", "response": "b", "score": score} for score in (-1, 0, 1)]
    done = primecli("import", write(tmp_path / "a.jsonl", signed), "--model", ended, "--out", tmp_path / "a")
    assert "labels from -1 to 1 become rewards from 0 to 1" in done.err
    assert [row[schema.OUTCOME_REWARD] for row in read_rows(done.paths)] == [0.0, 0.5, 1.0]
    stars = write(tmp_path / "b.jsonl", [{"prompt": "a", "response": "b", "score": score} for score in (1, 2, 5)])
    common = ["import", stars, "--model", ended, "--out", tmp_path / "b"]
    refused = primecli(*common, check=False)
    assert (refused.code, "row 2: its label is 2; labels are from 0 to 1, or from -1 to 1" in refused.line()) == (
        3,
        True,
    )
    done = primecli(*common, "--label-range", 1, 5)
    assert [row[schema.OUTCOME_REWARD] for row in read_rows(done.paths)] == [0.0, 0.25, 1.0]
    narrow = primecli(*common[:-1], tmp_path / "c", "--label-range", 1, 4, check=False)
    assert (narrow.code, "1 with a label outside the scale" in narrow.err) == (4, True)


def test_what_cannot_be_used_is_counted_and_said(ended: Path, tmp_path: Path, primecli: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "response": "b", "label": 1},
        {"prompt": "a", "response": "c", "label": None},
        {"prompt": "a", "response": "  ", "label": 1},
        {"prompt": "a", "response": "x<pad>y", "label": 1},
        {"prompt": "a", "response": "d" * 40, "label": 1},
        {"prompt": "b", "response": "e<eos>", "label": 0},
        {"prompt": "c", "response": "", "label": 0},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    common = ["import", file, "--model", ended, "--max-length", 50, "--prompts-per-shard", 1]
    done = primecli(*common, "--out", tmp_path / "import", check=False)
    assert done.code == 4
    last = done.err.splitlines()[-1]
    assert (
        "4 of 7 responses could not be used (1 without a label, 2 with an empty response or step, 1 whose token ids do "
        "not decode to the text), and --max-errors allows 0"
    ) in last
    assert f"the first: {file}: row 2, without a label" in last
    assert "1 responses are longer than --max-length, and left out" in done.err
    assert "1 responses end with the text of the end token" in done.err
    assert [row[schema.RESPONSE] for row in read_rows(done.paths)] == ["b", "e"]
    assert [path.name for path in done.paths] == ["rollouts-00000-of-00003.parquet", "rollouts-00001-of-00003.parquet"]
    assert summary(tmp_path / "import")["status"] == "complete"
    assert summary(tmp_path / "import")["metrics"]["too_long"] == 1
    again = primecli(*common, "--out", tmp_path / "import", check=False)  # the counts are in the shards
    assert (again.code, again.paths, "4 of 7 responses" in again.err) == (4, done.paths, True)
    none = primecli("import", file, "--model", ended, "--max-length", 1, "--out", tmp_path / "none", check=False)
    assert (none.code, "none of the 7 responses can be used" in none.err) == (3, True)


def test_responses_without_labels_are_for_verify(ended: Path, tmp_path: Path, primecli: Any) -> None:
    rows = [{key: value for key, value in row.items() if key != "label"} for row in ROWS]
    common = ["import", write(tmp_path / "a.jsonl", rows), "--model", ended, "--out", tmp_path / "import"]
    refused = primecli(*common, check=False)
    assert (refused.code, "no response has a label (name the column with --label-column" in refused.line()) == (3, True)
    primecli(*common, "--unlabelled")
    graded = primecli("verify", tmp_path / "import", "--max-errors", 1)
    assert [row[schema.VERDICT] for row in read_rows(graded.paths)] == ["correct", "wrong", "error"]


def test_a_rerun_makes_only_what_is_missing(ended: Path, tmp_path: Path, primecli: Any) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    command = ["import", file, "--model", ended, "--out", tmp_path / "import", "--prompts-per-shard", 1]
    first = primecli(*command)
    before = [path.read_bytes() for path in first.paths]
    rows = read_rows(first.paths)
    first.paths[1].unlink()
    again = primecli(*command)
    assert (again.paths, "1 of 2 shards existed already" in again.err) == (first.paths, True)
    assert first.paths[0].read_bytes() == before[0]
    assert read_rows(first.paths) == rows
    other = primecli(*command, "--suffix", "?", check=False)
    assert (other.code, "suffix was , is ?" in other.line()) == (1, True)
    write(file, ROWS[:2])
    assert "its input has changed" in primecli(*command, check=False).line()


def test_every_stage_of_offline_training_takes_the_shards(ended: Path, tmp_path: Path, primecli: Any) -> None:
    rows = [{**STEPS[0], "steps": ["a", "b"]}, {**STEPS[0], "label": 1, "final_answer_correct": False}]
    imported = tmp_path / "import"
    primecli("import", write(tmp_path / "a.jsonl", rows), "--model", ended, "--out", imported)
    cpu = ["--device", "cpu", "--micro-batch-tokens", 256]
    checkpoint = ["--checkpoint", tmp_path / "prm", "--lr", 1e-3]
    primecli("update-prm", imported, "--prm", ended, "--ref", ended, *checkpoint, *cpu)
    primecli("score-prm", imported, "--prm", tmp_path / "prm", "--ref", ended, *cpu)
    scored = tmp_path / "score-prm"
    done = primecli("compute-advantages", scored, "--granularity", "step", "--no-whiten", "--process-norm", "none")
    for row in read_rows(done.paths):
        changes = [
            index
            for index in range(len(row[schema.RETURNS]) - 1)
            if row[schema.PROCESS_ADVANTAGES][index] != row[schema.PROCESS_ADVANTAGES][index + 1]
        ]
        assert changes == row[schema.STEP_ENDS][:-1]
    (shown,) = [json.loads(str(line)) for line in primecli("inspect", scored, "--row", 0, "--json").paths]
    assert [step["text"] for step in shown["steps"]] == ["a\n\n", "b<eos>"]
    assert shown["first_wrong_step"] == -1
    assert any("first wrong step none" in str(line) for line in primecli("inspect", scored, "--row", 0).paths)
    rewards = read_rows(scored)[0][schema.PROCESS_REWARDS]
    assert shown["steps"][0]["sum"] == pytest.approx(sum(rewards[:3]), rel=1e-5)
    primecli("evaluate", scored, "--select", "min")
    for command in (
        ["validate", scored],
        ["stats", scored],
        ["audit", scored],
        ["filter", imported, "--accuracy", 0, 1],
    ):
        primecli(*command)
    assert any("import" in str(line) for line in primecli("lineage", scored).paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-range", 1, 1], "give the label of a wrong response first"),
        (["--no-chat-template", "--system", "x"], "--system needs the chat template"),
        (["--chat-template-arg", "x"], "write it as KEY=VALUE"),
    ],
)
def test_options_that_make_no_sense(
    options: list[object], message: str, ended: Path, tmp_path: Path, primecli: Any
) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    refused = primecli("import", file, "--model", ended, "--out", tmp_path / "x", *options, check=False)
    assert (refused.code, message in refused.line()) == (2, True)
    assert not (tmp_path / "x").exists()
