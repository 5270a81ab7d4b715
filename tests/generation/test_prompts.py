from __future__ import annotations

import gzip
import json
from collections import Counter
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
