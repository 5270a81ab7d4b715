from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primecli.errors import InputError, UsageError
from primecli.generation.prompts import PromptColumns, read_prompts, stream_positions

VERL = {
    "data_source": "numina",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 7, "split": "train"},
}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_verl_layout_from_parquet_and_json_lines(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([VERL]), tmp_path / "p.parquet")
    files = [tmp_path / "p.parquet", jsonl(tmp_path / "p.jsonl", [VERL])]
    for prompt in read_prompts(files, PromptColumns()):
        assert prompt.content == VERL["prompt"]
        assert (prompt.ground_truth, prompt.data_source, prompt.ability) == ("2", "numina", "math")
    assert len({prompt.prompt_id for prompt in read_prompts(files, PromptColumns())}) == 1


def test_plain_questions_with_a_pattern_for_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"question": "How many?", "answer": "9 + 9 = <<9+9=18>>18\n#### 18 "}))
    columns = PromptColumns("question", "answer", r"#### (.*)", "\nAnswer:")
    (prompt,) = read_prompts([path], columns)
    assert (prompt.content, prompt.ground_truth) == ("How many?\nAnswer:", "18")


def test_a_suffix_goes_after_the_last_message(tmp_path: Path) -> None:
    (prompt,) = read_prompts([jsonl(tmp_path / "p.jsonl", [VERL])], PromptColumns(suffix=" Think."))
    assert [message["content"] for message in prompt.content] == ["Be brief.", "1+1? Think."]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "x"}\n{"prompt": null}\n', "row 2: the prompt is null"),
        ('{"question": "x"}\n', "row 1: no column 'prompt'; its columns are question"),
        ('{"prompt": 3}\n', "row 1: the prompt is int"),
        ('{"prompt": [{"role": "user"}]}\n', "row 1: the prompt is list"),
        ('{"prompt": "x"}\n{"prompt"\n', "line 2 is not JSON"),
        ("[1]\n", "row 1 is not a JSON object"),
        ("\n", "no prompts found"),
    ],
)
def test_bad_prompt_files_are_named_with_their_row(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts([path], PromptColumns())
    assert str(path) in str(caught.value)


def test_bad_answers_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "x", "answer": "no hash"}])
    with pytest.raises(InputError, match="row 1: --answer-regex '#### ' does not match"):
        read_prompts([path], PromptColumns(answer_regex="#### "))
    with pytest.raises(UsageError, match="--answer-regex"):
        read_prompts([path], PromptColumns(answer_regex="("))
    with pytest.raises(InputError, match="no column 'gold'"):
        read_prompts([path], PromptColumns(answer="gold"))


def answer_of(path: Path, value: Any, answer: str | None = None, **columns: Any) -> str | None:
    """The answer that is read from a row whose column `answer` has this value."""
    rows = jsonl(path, [{"prompt": "1+1?", "answer": value, **columns}])
    (prompt,) = read_prompts([rows], PromptColumns(answer=answer))
    return prompt.ground_truth


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["72"], "72"),
        ([[72]], "72"),
        ([None, "72"], "72"),
        ('["72"]', "72"),
        ('["\\\\frac12"]', r"\frac12"),
        ("[72]", "[72]"),
        ('["1", "2"]', '["1", "2"]'),
        ([], None),
        (72.0, "72"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e22, "1e+22"),
        (True, "true"),
        (float("nan"), None),
        ([float("nan")], None),
    ],
)
def test_answers_are_decoded_to_text(value: Any, text: str | None, tmp_path: Path) -> None:
    assert answer_of(tmp_path / "p.jsonl", value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(Decimal("3.140"), "3.14"), (Decimal("1E+2"), "100"), (b"2", "2"), (date(2026, 5, 1), "2026-05-01")],
)
def test_answers_that_only_parquet_has(value: Any, text: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["x"], "reward_model": [{"ground_truth": value}]}), tmp_path / "p.parquet")
    assert read_prompts([tmp_path / "p.parquet"], PromptColumns())[0].ground_truth == text


def test_a_narrow_float_is_written_as_short_as_it_can_be(tmp_path: Path) -> None:
    answers = pa.array([{"ground_truth": 0.1}], pa.struct([("ground_truth", pa.float32())]))
    pq.write_table(pa.table({"prompt": ["x"], "reward_model": answers}), tmp_path / "p.parquet")
    assert read_prompts([tmp_path / "p.parquet"], PromptColumns())[0].ground_truth == "0.1"


@pytest.mark.parametrize("ability", [None, "math", "geometry"])
def test_one_of_several_answers_is_never_guessed(ability: str | None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 1: answer is a list of 2 answers"):
        answer_of(tmp_path / "p.jsonl", ["1", "2"], ability=ability)


def test_the_tests_of_programs_stay_json(tmp_path: Path) -> None:
    tests = {"inputs": ["1\n"], "outputs": [["2"]], "fn_name": None}
    for value in (tests, json.dumps(tests), [json.dumps(tests)]):
        text = answer_of(tmp_path / "p.jsonl", value, ability="code")
        assert text is not None
        assert json.loads(text) == tests
    assert (
        answer_of(tmp_path / "p.jsonl", ["assert f()", "assert g()"], ability="code") == '["assert f()", "assert g()"]'
    )


@pytest.mark.parametrize(
    "reward_model",
    [
        {"ground_truth": ["7"]},
        '{"ground_truth": "7", "weight": 1}',
        [{"ground_truth": 7}],
        None,
        "model-7",
        {"style": "rule"},
    ],
)
def test_the_reward_model_may_be_json_text_or_missing(reward_model: Any, tmp_path: Path) -> None:
    assert answer_of(tmp_path / "p.jsonl", "7", reward_model=reward_model) == "7"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("extra.answers.short", {"extra": {"answers": {"short": ["7"]}}}),
        ("extra.answers.short", {"extra": '{"answers": {"short": 7}}'}),
        ("extra.answers", {"extra": {"answers": "8"}, "extra.answers": "7"}),
        ("a.b.c", {"a.b": {"c": "7"}}),
    ],
)
def test_a_name_with_dots_goes_into_a_column(column: str, values: dict[str, Any], tmp_path: Path) -> None:
    assert answer_of(tmp_path / "p.jsonl", None, column, **values) == "7"
    pq.write_table(pa.Table.from_pylist([{"question": {"text": "1+1?"}, **values}]), tmp_path / "p.parquet")
    (prompt,) = read_prompts([tmp_path / "p.parquet"], PromptColumns("question.text", column))
    assert (prompt.content, prompt.ground_truth) == ("1+1?", "7")


def test_a_nested_name_that_is_not_there(tmp_path: Path) -> None:
    assert answer_of(tmp_path / "p.jsonl", None, "extra.short", extra=None) is None
    with pytest.raises(InputError, match=r"no column 'extra.short'; its columns are answer, extra, prompt"):
        answer_of(tmp_path / "p.jsonl", None, "extra.short", extra={"long": "7"})


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "a\ud83d"}, "the prompt"),
        ({"prompt": [{"role": "user", "content": "a", "name": "\ud83d"}]}, "the prompt"),
        ({"prompt": "a", "tools": [{"name": "\ud83d"}]}, "the prompt"),
        ({"prompt": "a", "answer": "\ud83d"}, "the answer"),
        ({"prompt": "a", "data_source": "\ud83d"}, "data_source"),
        ({"prompt": "a", "prompt_id": "\ud83d"}, "prompt_id"),
    ],
)
def test_half_a_character_is_named(row: dict[str, Any], name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"row 2: {name} holds U\+D83D, half of a character"):
        read_prompts([jsonl(tmp_path / "p.jsonl", [{"prompt": "x"}, row])], PromptColumns())


def test_ids_stay_what_they_are(tmp_path: Path) -> None:
    """The hash of a problem is the id that its rollouts are stored under, in shards that exist already."""
    rows: list[dict[str, Any]] = [
        VERL,
        {"prompt": "1+1?", "answer": "2"},
        {"prompt": "1+1?", "answer": 2, "prompt_id": 0},
    ]
    prompts = read_prompts([jsonl(tmp_path / "p.jsonl", rows)], PromptColumns())
    assert [prompt.prompt_id for prompt in prompts] == ["708519969fca374d", "82831a5898978c02", "0"]
    assert not any(prompt.decoded for prompt in prompts)


@pytest.mark.parametrize(
    ("row", "decoded"),
    [
        (
            {
                "prompt": [{"role": "user", "content": "a", "name": None}],
                "answer": {"inputs": [1.0]},
                "ability": "code",
            },
            False,
        ),
        ({"prompt": "a", "answer": 7}, False),
        ({"prompt": "a", "answer": ["7"]}, True),
        ({"prompt": "a", "answer": '["7"]'}, True),
        ({"prompt": "a", "answer": 7.0}, True),
        ({"prompt": "a", "data_source": ["d"]}, True),
        ({"prompt": "a", "reward_model": '{"ground_truth": "7"}'}, True),
        ({"prompt": json.dumps(VERL["prompt"])}, True),
        ({"prompt": [{"role": "user", "content": "a", "name": "n"}]}, True),
        ({"prompt": "a", "tools": [{"name": "f"}]}, True),
    ],
)
def test_what_is_decoded_is_marked(row: dict[str, Any], decoded: bool, tmp_path: Path) -> None:
    (prompt,) = read_prompts([jsonl(tmp_path / "p.jsonl", [row])], PromptColumns())
    assert prompt.decoded == decoded


LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None), max_size=3)
MESSAGES = st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "type", "text", "ground_truth"]), LEAVES)
VALUES = st.recursive(
    LEAVES | MESSAGES, lambda inner: st.lists(inner, max_size=3) | inner.map(json.dumps), max_leaves=5
)
COLUMNS = ["prompt", "answer", "reward_model", "ground_truth", "ability", "data_source", "prompt_id", "tools"]


@given(row=st.dictionaries(st.sampled_from(COLUMNS), VALUES))
def test_any_row_is_read_or_named(row: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = jsonl(tmp_path_factory.getbasetemp() / "p.jsonl", [row])
    for columns in (PromptColumns(), PromptColumns("reward_model.ground_truth", "prompt.text", "(.)", "!")):
        try:
            (prompt,) = read_prompts([path], columns)
        except InputError:
            continue
        texts = (prompt.prompt_id, prompt.ground_truth, prompt.data_source, prompt.ability)
        assert all(text is None or isinstance(text, str) for text in texts)
        json.dumps([prompt.content, prompt.tools, *texts], ensure_ascii=False).encode()


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 3))
def test_the_stream_is_one_shuffled_pass_after_another(total: int, batch: int, seed: int) -> None:
    steps = 3 * total // batch + 2
    stream = [
        pair for step in range(1, steps + 1) for pair in stream_positions(total, step=step, batch=batch, seed=seed)
    ]
    assert [position for position, _ in stream] == list(range(steps * batch))
    for start in range(0, len(stream) - total + 1, total):
        assert Counter(index for _, index in stream[start : start + total]) == Counter(range(total))


def test_passes_and_seeds_differ() -> None:
    first, second = ([index for _, index in stream_positions(50, step=step, batch=50, seed=0)] for step in (1, 2))
    assert first != second
    assert first != [index for _, index in stream_positions(50, step=1, batch=50, seed=1)]
