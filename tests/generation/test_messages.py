from __future__ import annotations

import json
from typing import Any

import pytest

from primecli.generation.messages import UnusableError, read_content, read_tools, with_suffix

USER = {"role": "user", "content": "w?"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_fields_are_kept_and_padding_is_not() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"}
    result = {"role": "tool", "content": "42", "name": "f", "tool_call_id": "x"}
    assert read_content([USER, called, result], padded=False) == [USER, called, result]
    padded = [{**USER, "name": None, "tool_calls": []}, {**called, "tool_calls": [{**CALL, "id": None}]}, result]
    assert read_content(padded, padded=True) == [USER, called, result]


def test_arguments_in_json_text_are_decoded() -> None:
    written = {**CALL, "function": {"name": "f", "arguments": '{"a": 1}'}}
    for calls in ([written], json.dumps([written])):
        content = read_content([USER, {"role": "assistant", "content": "", "tool_calls": calls}, USER], padded=False)
        assert content[1]["tool_calls"] == [CALL]  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (json.dumps([USER]), [USER]),
        (b"w?", "w?"),
        ("[1, 2]", "[1, 2]"),
        ('[{"role": "x"}]', '[{"role": "x"}]'),
        ("[" * 100_000, "[" * 100_000),
        ([{"role": "user", "content": [{"type": "text", "text": "w?"}]}], [USER]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "image": None}, "b"]}],
            [{**USER, "content": ["a", "b"]}],
        ),
    ],
    ids=["json text", "bytes", "a list of numbers", "no messages", "brackets", "one part", "two parts"],
)
def test_what_is_decoded(value: Any, content: Any) -> None:
    assert read_content(value, padded=False) == content


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([USER, {"role": "assistant", "content": "4"}], "ends with the answer"),
        (json.dumps([USER, {"role": "assistant", "content": "4"}]), "ends with the answer"),
        ([USER, {"role": "model", "content": "4"}], "ends with the answer"),
        ([{"role": "user", "content": None}], "message 1 of the prompt has no content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of the type image"),
        ([{"role": "user", "content": 3}], "the content of message 1 is int"),
        ([{"role": "user", "content": []}], "the content of message 1 is list"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": [3]}, USER], "the tool_calls of message 2"),
        ([{"from": "human", "value": "w?"}], "the prompt is list"),
        (float("nan"), "the prompt is null"),
        (b"\xff", "not UTF-8 text"),
    ],
)
def test_what_would_be_lost_is_refused(value: Any, message: str) -> None:
    with pytest.raises(UnusableError, match=message):
        read_content(value, padded=False)


def test_tools_may_be_json_text() -> None:
    for value in (TOOLS, json.dumps(TOOLS), [json.dumps(TOOLS[0])]):
        assert read_tools(value, padded=False) == TOOLS
    assert read_tools([{**TOOLS[0], "strict": None}], padded=True) == TOOLS
    nothings: tuple[Any, ...] = (None, [], "", "[]", float("nan"))
    for nothing in nothings:
        assert read_tools(nothing, padded=False) is None
    for other in ("hammer", ["calculator"], 3, {"f": 1}):
        with pytest.raises(UnusableError, match="tools is not a list"):
            read_tools(other, padded=False)


def test_a_suffix_goes_after_the_users_last_message() -> None:
    result = {"role": "tool", "content": "42"}
    assert with_suffix([USER, result], "!") == [{**USER, "content": "w?!"}, result]
    assert with_suffix([{"role": "system", "content": "s"}], "!") == [{"role": "system", "content": "s!"}]
    assert with_suffix([{**USER, "content": ["a", "b"]}], "!") == [{**USER, "content": ["a", "b!"]}]
