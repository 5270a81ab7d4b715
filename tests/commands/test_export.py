from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primecli.shards import schema
from tests.builders import rollout, write_shards
from tests.conftest import read_rows
from tests.generation.templates import ENDED, with_template


@pytest.fixture
def exported(primecli: Any, tmp_path: Path) -> Any:
    def run(*arguments: object) -> list[dict[str, Any]]:
        out = tmp_path / "new" / "out.jsonl"
        done = primecli("export", *arguments, "--out", out, "--force")
        assert done.paths == [out]
        run.said = done.err  # type: ignore[attr-defined]
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return with_template(tiny, tmp_path / "model", ENDED)


def asked(text: str, **columns: Any) -> dict[str, Any]:
    return {schema.PROMPT: f"user: {text}<eos>\nassistant: ", **columns}


def graded(directory: Path) -> Path:
    """Two prompts, of four and two responses; the third response is not graded."""
    rewards = [1.0, 0.0, None, 1.0]
    rows = [
        rollout(0, index, 4, **asked("3+4=", response=f"r{index}", outcome_reward=reward))
        for index, reward in enumerate(rewards)
    ]
    rows += [rollout(1, index, 2, **asked("2+2=", response=f"s{index}", outcome_reward=0.0)) for index in range(2)]
    return write_shards(directory, rows)


USER = [{"role": "user", "content": "3+4="}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_responses_with_their_labels(model: Path, tmp_path: Path, exported: Any) -> None:
    lines = exported(graded(tmp_path / "in"), "--format", "trl", "--tokenizer", model)
    assert lines[0] == {"prompt": USER, "completion": answer("r0"), "label": True, "reward": 1.0}
    assert [line["completion"][0]["content"] for line in lines] == ["r0", "r1", "r3", "s0", "s1"]
    assert [line["label"] for line in lines] == [True, False, True, False, False]
    assert "1 responses are not graded, and are left out" in exported.said
    assert "5 responses -> " in exported.said


def test_responses_without_grades_have_no_labels(model: Path, tmp_path: Path, exported: Any) -> None:
    row = {key: value for key, value in rollout(0, 0, 1, **asked("3+4=")).items() if key != schema.OUTCOME_REWARD}
    lines = exported(write_shards(tmp_path / "in", [row]), "--format", "trl", "--tokenizer", model)
    assert lines == [{"prompt": USER, "completion": answer("8")}]


def test_pairs_of_a_group(model: Path, tmp_path: Path, exported: Any) -> None:
    lines = exported(graded(tmp_path / "in"), "--format", "trl-preference", "--tokenizer", model)
    assert lines == [{"prompt": USER, "chosen": answer("r0"), "rejected": answer("r1")}]
    assert "4 responses have no counterpart in their group" in exported.said


def test_prompts_for_verl(model: Path, tmp_path: Path, exported: Any, primecli: Any) -> None:
    lines = exported(graded(tmp_path / "in"), "--format", "verl", "--tokenizer", model)
    assert lines[0] == {
        "data_source": "made",
        "prompt": USER,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"index": 0, "prompt_id": "p0", "pass_rate": pytest.approx(2 / 3), "samples": 3},
    }
    assert [line["extra_info"]["index"] for line in lines] == [0, 1]


def test_what_was_imported_comes_out_again(tiny: Path, tmp_path: Path, exported: Any, primecli: Any) -> None:
    rows = [
        {"prompt": "1+1=", "steps": ["one", "two €", "2"], "labels": [1, 1, 1]},
        {"prompt": "2+2=", "steps": ["two", "5", "so 5"], "labels": [1, 0, 1]},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = with_template(tiny, tmp_path / "ended", ENDED)
    primecli("import", file, "--model", model, "--out", tmp_path / "import")
    lines = exported(tmp_path / "import", "--format", "trl-steps")  # the shards name the tokenizer
    assert lines[0] == {
        "prompt": "user: 1+1=<eos>\nassistant: ",
        "completions": ["one", "two €", "2"],
        "labels": [True, True, True],
    }
    assert (lines[1]["completions"], lines[1]["labels"]) == (["two", "5"], [True, False])
    exported(tmp_path / "import", "--format", "trl")
    again = tmp_path / "a2.jsonl"
    (tmp_path / "new" / "out.jsonl").rename(again)
    primecli("import", again, "--model", model, "--data-source", "a", "--out", tmp_path / "again")
    same = (schema.PROMPT, schema.PROMPT_IDS, schema.RESPONSE_IDS, schema.OUTCOME_REWARD, schema.DATA_SOURCE)
    first, second = (
        [[row[name] for name in same] for row in read_rows(tmp_path / name)] for name in ("import", "again")
    )
    assert first == second


def test_prompts_without_a_template_stay_text(model: Path, tmp_path: Path, exported: Any) -> None:
    rows = [rollout(0, 0, 1), rollout(1, 0, 1, **asked("3+4="))]
    directory = write_shards(tmp_path / "in", rows)
    lines = exported(directory, "--format", "trl", "--tokenizer", model)
    assert [line["prompt"] for line in lines] == ["3+4=", rows[1][schema.PROMPT]]
    assert lines[0]["completion"] == "8"
    assert "1 prompts did not go through this model's chat template: all prompts are written as" in exported.said
    lines = exported(directory, "--format", "verl", "--tokenizer", model)
    assert [line["prompt"] for line in lines] == [USER, USER]
    assert "each becomes a message of the user" in exported.said


def test_a_file_is_whole_or_not_there(model: Path, tmp_path: Path, primecli: Any) -> None:
    directory = graded(tmp_path / "in")
    out = tmp_path / "out.jsonl"
    command = ["export", directory, "--tokenizer", model, "--out", out, "--format"]
    steps = primecli(*command, "trl-steps", check=False)
    assert (
        steps.code,
        "lacks the columns step_ends, first_wrong_step (made by `primecli import`)" in steps.line(),
    ) == (
        3,
        True,
    )
    wrong = write_shards(tmp_path / "wrong", [rollout(0, 0, 1, **asked("3+4=", outcome_reward=0.0))])
    none = primecli("export", wrong, *command[2:], "trl-preference", check=False)
    assert (none.code, "nothing to write: no group has both a right and a wrong response" in none.err) == (3, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "model", "wrong"]
    primecli(*command, "trl")
    before = out.read_bytes()
    exists = primecli(*command, "verl", check=False)
    assert (exists.code, f"{out} exists (choose another --out" in exists.line()) == (1, True)
    assert out.read_bytes() == before
    nowhere = primecli("export", directory, "--format", "trl", "--out", out, "--force", check=False)
    assert (nowhere.code, "name it with --tokenizer" in nowhere.line()) == (3, True)
