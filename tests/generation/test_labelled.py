from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli.errors import InputError
from primecli.generation.label_values import as_score, first_wrong_step, scale_of
from primecli.generation.labelled import LabelledResponse, ResponseColumns, read_labelled

ASKED = [{"role": "user", "content": "3+4="}]
ANSWER = {"role": "assistant", "content": "7"}


def read(tmp_path: Path, rows: Sequence[dict[str, Any]], **columns: Any) -> list[LabelledResponse]:
    path = tmp_path / "maths.v2.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_labelled([path], ResponseColumns(**columns))


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": [*ASKED, ANSWER], "label": 1},
        {"messages": [*ASKED, ANSWER], "label": True},
        {"messages": json.dumps([*ASKED, ANSWER]), "score": "1.0"},
        {"conversations": [{"from": "human", "value": "3+4="}, {"from": "gpt", "value": "7"}], "reward": 1.0},
        {"messages": [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "7"}]}], "correct": "true"},
        {"prompt": ASKED, "completion": [ANSWER], "label": True},
        {"prompt": ASKED, "response": "7", "score": 1},
        {"prompt": ASKED, "responses": ["7"], "scores": [1]},
    ],
    ids=lambda row: " ".join(row),
)
def test_messages_in_every_layout(row: dict[str, Any], tmp_path: Path) -> None:
    (one,) = read(tmp_path, [row])
    assert (one.prompt.content, one.text, one.outcome, one.steps) == (ASKED, "7", 1.0, None)
    assert (one.prompt.data_source, one.prompt.where.endswith("row 1")) == ("maths", True)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "3+4=", "completion": "7", "is_correct": False}, {}),
        ({"question": "3+4=", "output": "7", "correctness": "wrong", "answer": "8"}, {}),
        ({"problem": "3+4=", "generation": "7", "reward": 0.0}, {}),
        (
            {"x": {"q": "3+4="}, "answer": "7", "grade": 0},
            {"prompt": "x.q", "response": "answer", "label": "grade"},
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_plain_texts_in_every_layout(row: dict[str, Any], columns: dict[str, str], tmp_path: Path) -> None:
    (one,) = read(tmp_path, [row], **columns)
    assert (one.prompt.content, one.text, one.outcome) == ("3+4=", "7", 0.0)
    assert one.prompt.ground_truth == (None if columns else row.get("answer"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "3+4=", "chosen": "7", "rejected": "8"},
        {"prompt": ASKED, "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "8"}]},
        {"chosen": [*ASKED, ANSWER], "rejected": [*ASKED, {**ANSWER, "content": "8"}], "score_chosen": 0.1},
    ],
    ids=["texts", "explicit", "implicit"],
)
def test_pairs_are_two_responses(row: dict[str, Any], tmp_path: Path) -> None:
    right, wrong = read(tmp_path, [row])
    assert [(one.text, one.outcome) for one in (right, wrong)] == [("7", 1.0), ("8", 0.0)]
    assert right.prompt == wrong.prompt
    assert right.prompt.content in ("3+4=", ASKED)


def test_several_responses_in_a_row(tmp_path: Path) -> None:
    found = read(tmp_path, [{"prompt": "3+4=", "responses": ["7", "8"], "rewards": [1, 0]}])
    assert [(one.text, one.outcome) for one in found] == [("7", 1.0), ("8", 0.0)]
    with pytest.raises(InputError, match=r"row 1: responses is a list of 2 responses, and rewards is no list of as"):
        read(tmp_path, [{"prompt": "3+4=", "responses": ["7", "8"], "rewards": [1]}])


PRM800K = {
    "question": {"problem": "3+4=", "ground_truth_answer": "7"},
    "label": {
        "steps": [
            {"completions": [{"text": "no", "rating": -1}, {"text": "a", "rating": 1}], "chosen_completion": 1},
            {"completions": [], "human_completion": {"text": "b", "rating": None}, "chosen_completion": None},
            {"completions": [{"text": "c", "rating": -1}], "chosen_completion": None, "human_completion": None},
        ],
        "finish_reason": "found_error",
    },
}


@pytest.mark.parametrize(
    ("row", "labels", "first", "outcome"),
    [
        ({"problem": "3+4=", "steps": ["a", "b", "c"], "label": 1, "final_answer_correct": True}, None, 1, 1.0),
        ({"problem": "3+4=", "steps": ["a", "b", "c"], "label": -1, "final_answer_correct": False}, None, -1, 0.0),
        ({"prompt": "3+4=", "steps": ["a", "b", "c"], "labels": [1, 0, -1]}, (1, 0, -1), None, None),
        ({"prompt": "3+4=", "completions": ["a", "b", "c"], "labels": [True, False, False]}, (1, 0, 0), None, None),
        (
            {"problem": "3+4=", "steps": [{"text": text, "rating": 1} for text in "abc"], "correct": 1},
            (1, 1, 1),
            None,
            1.0,
        ),
        (PRM800K, (1, None, -1), None, None),
    ],
    ids=["processbench", "processbench-right", "labels", "trl", "objects", "prm800k"],
)
def test_steps_in_every_layout(row: dict[str, Any], labels: Any, first: Any, outcome: Any, tmp_path: Path) -> None:
    (one,) = read(tmp_path, [row])
    assert (one.prompt.content, one.steps) == ("3+4=", ("a", "b", "c"))
    assert (one.step_labels, one.first_wrong, one.outcome) == (labels, first, outcome)
    assert one.prompt.ground_truth == ("7" if row is PRM800K else None)


def test_every_container_gives_the_same(tmp_path: Path) -> None:
    rows = [{"conversation": [*ASKED, ANSWER], "label": 1}, {"conversation": [*ASKED, ANSWER], "label": 0}]
    expected = [(ASKED, "7", 1.0), (ASKED, "7", 0.0)]
    text = json.dumps(rows).encode()
    (tmp_path / "a.json").write_bytes(text)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(text))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("a.json", "b.json.gz", "c.parquet"):
        found = read_labelled([tmp_path / name], ResponseColumns())
        assert [(one.prompt.content, one.text, one.outcome) for one in found] == expected, name
        assert {one.prompt.data_source for one in found} == {name[0]}


def test_parquet_pads_steps_with_nulls_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = [
        {"problem": "1", "steps": ["a"], "label": 0, "response": None, "data_source": "here"},
        {"problem": "2", "steps": None, "label": 1, "response": "b", "data_source": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    steps, plain = read_labelled([tmp_path / "c.parquet"], ResponseColumns())
    assert (steps.steps, steps.first_wrong, steps.prompt.data_source) == (("a",), 0, "here")
    assert (plain.text, plain.outcome, plain.prompt.data_source) == ("b", 1.0, "c")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"prompt": "a", "text": "b"}, {}, "row 1: no response in its columns prompt, text"),
        ({"response": "b"}, {}, "row 1: no prompt in its columns response"),
        ({"prompt": "a", "response": "b", "label": "good-ish"}, {}, "row 1: label is 'good-ish', which is no label"),
        ({"prompt": "a", "response": "b"}, {"label": "grade"}, "row 1: no column 'grade'; its columns are prompt"),
        ({"messages": ASKED, "label": 1}, {}, "row 1: messages ends with a message of the role user"),
        ({"prompt": "a", "response": 7}, {}, "row 1: response is neither a text nor a list of messages"),
        ({"chosen": "a", "rejected": "b"}, {}, "row 1: chosen is a text, and there is no prompt beside it"),
        ({"problem": "a", "steps": ["b", 3], "label": 0}, {}, "row 1: steps[1] has no text"),
        ({"problem": "a", "steps": ["b"], "label": 0.5}, {}, "row 1: label is 0.5, and with steps it is the index"),
        ({"prompt": "a", "response": "\ud800"}, {}, "row 1: the response holds U+D800, half of a character"),
        ({"prompt": None, "response": "a"}, {}, "row 1: no prompt in its columns"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_what_cannot_be_read_is_said_in_one_line(
    row: dict[str, Any], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, [row], **columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_null_response_is_an_empty_one(tmp_path: Path) -> None:
    null, _ = read(
        tmp_path, [{"prompt": "a", "response": None, "label": 1}, {"prompt": "a", "response": "b", "label": 1}]
    )
    assert (null.text, null.outcome) == ("", 1.0)


def test_labels_mean_what_their_file_says() -> None:
    assert (scale_of([0, 1, None]).low, scale_of([-1, 1]).low, scale_of([-3, 1]).low) == (0, -1, 0)
    assert scale_of([]).reward(0.25) == 0.25
    assert [as_score(text) for text in ("+", " Wrong ", "0.25", float("nan"))] == [1.0, 0.0, 0.25, None]
    with pytest.raises(ValueError, match="infinite"):
        as_score("inf")
    assert first_wrong_step([1.0, 0.0, -1.0], 3, signed=True) == 2
    assert first_wrong_step([1.0, 0.0], 3, signed=False) == 1
    assert first_wrong_step([1.0, None], 2, signed=False) is None
    assert first_wrong_step([1.0], 2, signed=False) is None
