from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.models.device import resolve_placement
from primecli.models.loading import load_model
from primecli.models.scoring import score
from primecli.shards import schema
from primecli.shards.rollouts import Sequences
from tests.conftest import read_rows, summary

SMALL = ["--n", 2, "--max-tokens", 8, "--prompts-per-shard", 2]


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return read_rows(directory)


def test_shards_hold_whole_groups_with_every_column(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    result = primecli("generate", "--model", tiny, "--prompts", prompts, "--out", tmp_path / "g", *SMALL)
    assert [path.name for path in result.paths] == [f"rollouts-{number:05d}-of-00006.parquet" for number in range(6)]
    rows = rows_of(tmp_path / "g")
    assert list(rows[0]) == schema.made_by("generate")
    assert [row[schema.SAMPLE_INDEX] for row in rows] == [0, 1] * 12
    assert len({row[schema.GROUP_ID] for row in rows}) == 12
    assert [row[schema.GROUND_TRUTH] for row in rows[::2]] == [str(number) for number in range(12)]
    found = summary(tmp_path / "g")
    assert (found["status"], found["rows"], found["groups"]) == ("complete", 24, 12)


def test_logprobs_equal_the_trainers(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    arguments = ["--model", tiny, "--prompts", prompts, "--out", tmp_path / "g", *SMALL, "--temperature", 0.8]
    primecli("generate", *arguments)
    rows = rows_of(tmp_path / "g")
    place = resolve_placement("cpu", "float32")
    sequences = Sequences(
        [np.array(row[schema.PROMPT_IDS]) for row in rows],
        [np.array(row[schema.RESPONSE_IDS]) for row in rows],
        np.array([row[schema.TEMPERATURE] for row in rows]),
    )
    exact = score(load_model(tiny, place), place, sequences, micro_batch_tokens=100)
    ours = np.concatenate([row[schema.ROLLOUT_LOGPROBS] for row in rows])
    np.testing.assert_allclose(ours, exact, atol=3e-6)


def test_the_same_seed_gives_the_same_shards_whatever_ran_before(
    tiny: Path, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    common = ["generate", "--model", tiny, "--prompts", prompts, *SMALL, "--batch-prompts", 4]
    primecli(*common, "--step", 2, "--out", tmp_path / "a")
    for step in (1, 2):
        primecli(*common, "--step", step, "--out", tmp_path / f"b{step}")
    primecli(*common, "--step", 2, "--out", tmp_path / "c", "--prompts-per-shard", 3)
    primecli(*common, "--step", 2, "--out", tmp_path / "d", "--seed", 1)
    first, again, other_step, resharded, other_seed = (rows_of(tmp_path / name) for name in ("a", "b2", "b1", "c", "d"))
    assert first == again
    assert [row[schema.RESPONSE_IDS] for row in first] == [row[schema.RESPONSE_IDS] for row in resharded]
    assert not {row[schema.PROMPT_ID] for row in first} & {row[schema.PROMPT_ID] for row in other_step}
    assert [row[schema.RESPONSE_IDS] for row in first] != [row[schema.RESPONSE_IDS] for row in other_seed]


def test_a_rerun_makes_only_what_is_missing(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    command = ["generate", "--model", tiny, "--prompts", prompts, "--out", tmp_path / "g", *SMALL]
    first = primecli(*command)
    before = rows_of(tmp_path / "g")
    stamps = {path: path.stat().st_mtime_ns for path in first.paths}
    first.paths[2].unlink()
    again = primecli(*command)
    assert again.paths == first.paths
    assert rows_of(tmp_path / "g") == before
    changed = {path.name for path in again.paths if path.stat().st_mtime_ns != stamps[path]}
    assert changed == {first.paths[2].name}


def test_another_run_in_the_same_directory_is_an_error_that_says_what_differs(
    tiny: Path, other: Path, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    command = ["generate", "--prompts", prompts, "--out", tmp_path / "g", *SMALL]
    primecli(*command, "--model", tiny)
    differs = primecli(*command, "--model", tiny, "--temperature", 0.5, check=False)
    assert differs.code == 1
    assert "temperature was 1.0, is 0.5" in differs.line()
    assert "model policy was" in primecli(*command, "--model", other, check=False).line()
    before = rows_of(tmp_path / "g")
    primecli(*command, "--model", tiny, "--temperature", 0.5, "--force")
    assert rows_of(tmp_path / "g") != before


def test_messages_go_through_the_chat_template(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "Hi"}], "reward_model": {"ground_truth": "1"}}))
    primecli("generate", "--model", tiny, "--prompts", path, "--out", tmp_path / "g", *SMALL, "--suffix", "!")
    row = rows_of(tmp_path / "g")[0]
    assert row[schema.PROMPT] == "user: Hi!\nassistant: "
    assert len(row[schema.PROMPT_IDS]) == len(row[schema.PROMPT])
    assert row[schema.GROUND_TRUTH] == "1"


def test_long_prompts_are_left_out_and_counted(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    common = ["generate", "--model", tiny, "--prompts", prompts, *SMALL, "--no-chat-template"]
    primecli(*common, "--out", tmp_path / "g", "--max-prompt-tokens", 4)
    found = summary(tmp_path / "g")
    assert found["metrics"]["prompts_too_long"] == 12 - found["groups"] > 0
    none = primecli(*common, "--out", tmp_path / "h", "--max-prompt-tokens", 1, check=False)
    assert (none.code, "every prompt is longer than 1 tokens" in none.line()) == (3, True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such model directory"),
        (lambda path: path.mkdir(), "a model directory without config.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "a model directory without weights"),
    ],
)
def test_a_directory_without_a_model_is_named(
    make: Any, message: str, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    model = tmp_path / "model"
    make(model)
    result = primecli("generate", "--model", model, "--prompts", prompts, "--out", tmp_path / "g", check=False)
    assert (result.code, message in result.line(), str(model) in result.line()) == (3, True, True)


def test_damaged_weights_are_named(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    command = ["generate", "--model", model, "--prompts", prompts, "--out", tmp_path / "g", "--quiet"]
    result = primecli(*command, check=False)
    assert (result.code, str(model) in result.line()) == (3, True)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--step", 2], 2, "--step 2 without --batch-prompts"),
        (["--top-p", 0], 2, "--top-p 0 keeps no token"),
        (["--temperature", 1e-9], 2, "--temperature 1e-09"),
        (["--temperature", "nan"], 2, "nan is not a finite number"),
        (["--max-tokens", 5000], 3, "the model has 4096 positions"),
        (["--device", "gpu"], 2, "'gpu' is not auto, cpu, cuda or cuda:N"),
        (["--engine", "vllm", "--device", "cuda:1"], 2, "set CUDA_VISIBLE_DEVICES=1 instead"),
        (["--engine", "vllm-server", "--url", "u", *["--stop", "a"] * 5, "--max-tokens", 5000], 3, "4096 positions"),
        (
            ["--engine", "vllm-server", "--url", "u", *(item for text in "abcde" for item in ("--stop", text))],
            2,
            "vLLM servers take 4 texts at most",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    options: list[Any], code: int, message: str, tiny: Path, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    common = ["generate", "--model", tiny, "--prompts", prompts, "--out", tmp_path / "g"]
    result = primecli(*common, *options, check=False)
    assert (result.code, message in result.line()) == (code, True), result.err


def test_a_template_that_refuses_a_prompt_is_named(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "system", "content": "Hi"}]}))
    result = primecli("generate", "--model", model, "--prompts", path, "--out", tmp_path / "g", check=False)
    assert (result.code, "refuses it: no system role" in result.line()) == (3, True)


def test_a_null_prompt_is_named(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n')
    result = primecli("generate", "--model", tiny, "--prompts", path, "--out", tmp_path / "g", check=False)
    assert (result.code, f"{path}: row 2: the prompt is null" in result.line()) == (3, True)
    assert not list(tmp_path.rglob("*.parquet"))


def test_prompts_without_an_answer_are_reported_before_sampling(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1+1="}\n{"prompt": "1+2=", "answer": "3"}\n')
    arguments = ["--model", tiny, "--prompts", file, "--out", tmp_path / "g", *SMALL, "--quiet"]
    assert "1 of 2 prompts have no answer" in primecli("generate", *arguments).err
    assert "--answer-column" in primecli("generate", *arguments).err


def config_of(directory: Path) -> dict[str, Any]:
    return dict(summary(directory)["config"])


def test_texts_become_messages_unless_told_otherwise(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    command = ["generate", "--model", tiny, "--prompts", prompts, *SMALL, "--max-tokens", 1]
    wrapped = primecli(*command, "--out", tmp_path / "a")
    assert "12 of 12 prompts are text: each becomes a user message in the model's chat template" in wrapped.err
    assert rows_of(tmp_path / "a")[0][schema.PROMPT] == "user: 0=\nassistant: "
    assert config_of(tmp_path / "a")["chat_template"] == "user-message"
    bare = primecli(*command, "--no-chat-template", "--out", tmp_path / "b")
    assert "12 of 12 prompts are text, taken as they are" in bare.err
    assert rows_of(tmp_path / "b")[0][schema.PROMPT] == "0="
    assert config_of(tmp_path / "b")["no_chat_template"] is True
    other = primecli(*command, "--no-chat-template", "--out", tmp_path / "a", check=False)
    assert (other.code, "chat_template was user-message, is None" in other.line()) == (1, True)


def test_the_template_is_given_a_system_message_and_variables(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template + "{{ prefix }}")
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "Hi"}], "answer": ["1"]}))
    command = ["generate", "--model", model, "--prompts", path, "--n", 1, "--max-tokens", 1, "--out"]
    primecli(*command, tmp_path / "g", "--system", "Be brief.", "--chat-template-arg", "prefix=[1, 2]")
    assert rows_of(tmp_path / "g")[0][schema.PROMPT] == "system: Be brief.\nuser: Hi\nassistant: [1, 2]"
    config = config_of(tmp_path / "g")
    assert (config["system"], config["chat_template_args"], config["decoded"]) == (
        "Be brief.",
        {"prefix": [1, 2]},
        True,
    )
    again = primecli(*command, tmp_path / "g", "--system", "Be brief.", check=False)
    assert (again.code, "chat_template_args was {'prefix': [1, 2]}, is None" in again.line()) == (1, True)


def test_what_the_template_drops_is_counted(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    path = tmp_path / "p.jsonl"
    rows = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi<eos>"}], "Hi"]
    path.write_text("".join(json.dumps({"prompt": row, "answer": "1"}) + "\n" for row in rows))
    command = ["generate", "--model", model, "--prompts", path, "--n", 1, "--max-tokens", 1, "--quiet"]
    result = primecli(*command, "--out", tmp_path / "g")
    assert f"in 1 of 2 prompts the chat template leaves out a part of the earlier messages, first in {path}: row 1" in (
        result.err
    )
    assert "1 of 2 prompts hold the text of a special token" in result.err
    metrics = summary(tmp_path / "g")["metrics"]
    assert (metrics["prompts_incomplete"], metrics["prompts_with_special_tokens"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-chat-template", "--system", "s"], "--system needs the chat template"),
        (["--no-chat-template", "--chat-template-arg", "a=1"], "--chat-template-arg needs the chat template"),
        (["--chat-template-arg", "a"], "--chat-template-arg a: write it as KEY=VALUE"),
        (["--chat-template-arg", "a=1"], "has no such variable"),
        (["--suffix", "\udcff"], "has bytes that are not UTF-8"),
        (["--system", "\udcff"], "has bytes that are not UTF-8"),
        (["--chat-template-arg", r'a="\ud83d"'], "holds half of a character"),
    ],
)
def test_options_of_the_template_are_checked(
    options: list[str], message: str, tiny: Path, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    result = primecli("generate", "--model", tiny, "--prompts", prompts, "--out", tmp_path / "g", *options, check=False)
    assert (result.code, message in result.line()) == (2, True), result.err


def test_a_stop_text_ends_responses_and_stays_in_them(tiny: Path, prompts: Path, tmp_path: Path, primecli: Any) -> None:
    command = ["generate", "--model", tiny, "--prompts", prompts, "--n", 4, "--max-tokens", 30]
    primecli(*command, "--out", tmp_path / "free")
    primecli(*command, "--out", tmp_path / "ended", "--stop", "5", "--stop", "Q", "--stop", " ")
    primecli(*command, "--out", tmp_path / "ended", "--stop", "Q", "--stop", " ", "--stop", "5")  # which is the same
    assert "stop" not in config_of(tmp_path / "free")
    assert config_of(tmp_path / "ended")["stop"] == [" ", "5", "Q"]
    ended = 0
    for free, row in zip(rows_of(tmp_path / "free"), rows_of(tmp_path / "ended"), strict=True):
        length = len(row[schema.RESPONSE_IDS])
        assert row[schema.RESPONSE_IDS] == free[schema.RESPONSE_IDS][:length]
        np.testing.assert_allclose(row[schema.ROLLOUT_LOGPROBS], free[schema.ROLLOUT_LOGPROBS][:length], atol=2e-6)
        if length < len(free[schema.RESPONSE_IDS]):
            ended += 1
            assert row[schema.FINISH_REASON] == "stop"
            assert row[schema.RESPONSE].endswith(("5", "Q", " "))
            assert not set(row[schema.RESPONSE][:-1]) & {"5", "Q", " "}
    assert ended > 5
    primecli("check-logprobs", "--model", tiny, "--max-gap", 1e-4, tmp_path / "ended")


@pytest.mark.parametrize(
    ("text", "message"), [("", "--stop is empty"), ("a\ufffd", "--stop has U+FFFD in it, which stands for bytes that")]
)
def test_a_stop_text_that_cannot_be_meant_is_refused(
    text: str, message: str, tiny: Path, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    command = ["generate", "--model", tiny, "--prompts", prompts, "--out", tmp_path / "g", "--stop", text]
    result = primecli(*command, check=False)
    assert (result.code, message in result.line()) == (2, True), result.err
