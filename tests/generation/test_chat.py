from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primecli.errors import InputError, UsageError
from primecli.generation.encoder import Encoder
from primecli.generation.prompts import Prompt
from tests.generation.templates import PARTS, PLAIN, THOUGHTS, TOOLS, with_template

USER = {"role": "user", "content": "What is 1+1?"}


def prompt(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> Prompt:
    return Prompt("p", list(messages), "2", None, None, tools, "p.jsonl: row 1")


def encoder(tiny: Path, tmp_path: Path, template: str | None, **options: Any) -> Encoder:
    return Encoder(with_template(tiny, tmp_path / "model", template), **options)


@pytest.mark.parametrize("template", [PLAIN, PARTS], ids=["text", "parts"])
@pytest.mark.parametrize("content", ["What is\n1+1?", ["What is", "1+1?"]], ids=["one text", "two texts"])
def test_content_goes_in_as_the_template_wants_it(tiny: Path, tmp_path: Path, template: str, content: Any) -> None:
    text, _ = encoder(tiny, tmp_path, template).encode(prompt({"role": "user", "content": content}))
    assert text.replace("\n", "") == "user: What is1+1?assistant: "
    assert text.endswith("assistant: ")


TOOL = {"type": "function", "function": {"name": "add", "description": "a"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
RESULT = {"role": "tool", "content": 'is "2"', "name": "add"}


def test_tools_and_calls_reach_the_template(tiny: Path, tmp_path: Path) -> None:
    text, _ = encoder(tiny, tmp_path, TOOLS).encode(prompt(USER, CALLED, RESULT, tools=[TOOL]))
    tool, *lines = text.splitlines()
    assert '"name": "add"' in tool
    assert lines == ["user: What is 1+1?", 'assistant: add({"a": 1})', 'tool: add "is \\"2\\""', "assistant: "]


BROKEN = "{% for m in messages %}{{ m.content + 1 }}{% endfor %}"
FOREVER = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
RANDOM = PLAIN + "{{ range(100000) | random }}"


@pytest.mark.parametrize(
    ("template", "messages", "tools", "message"),
    [
        (PLAIN, [USER], [TOOL], "leaves out the tool add"),
        (PLAIN, [USER, CALLED, RESULT], None, "leaves out the call of add"),
        ("{{ messages[-1].content }}", [USER, RESULT], None, r"leaves out message 1 \(user\)"),
        ("{{ messages[0].content }}", [USER, RESULT], None, r"leaves out message 2 \(tool\)"),
        ("{{ messages[0].content }}", [RESULT, USER], None, r"leaves out message 2 \(user\)"),
        ("{{ messages[0].content[:5] }}", [USER], None, r"leaves out message 1 \(user\)"),
        (PLAIN, [{"role": "user", "content": " "}], None, "the prompt is empty"),
        (BROKEN, [USER], None, "refuses it: TypeError: can only concatenate"),
        ("{{ messages[0].no.thing }}", [USER], None, "refuses it: UndefinedError"),
        ("{{ 1 / 0 }}", [USER], None, "refuses it: ZeroDivisionError"),
        ("{% for", [USER], None, "refuses it: TemplateSyntaxError"),
        ("{{ raise_exception('no\\nuser') }}", [USER], None, "refuses it: no"),
        (FOREVER, [USER], None, "refuses it: RecursionError"),
        (RANDOM, [USER], None, "gives another text each time"),
    ],
)
def test_what_would_be_lost_is_refused(
    tiny: Path, tmp_path: Path, template: str, messages: Any, tools: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        encoder(tiny, tmp_path, template).encode(prompt(*messages, tools=tools))
    assert str(caught.value).startswith("p.jsonl: row 1: ")
    assert "\n" not in str(caught.value)


def test_earlier_thoughts_may_go_and_are_counted(tiny: Path, tmp_path: Path) -> None:
    ours = encoder(tiny, tmp_path, THOUGHTS)
    thought = {"role": "assistant", "content": "<think>hm</think>2"}
    text, _ = ours.encode(prompt(USER, thought, {"role": "user", "content": "\n And 2+2? "}))
    assert text == "user: What is 1+1?\nassistant: 2\nuser: And 2+2?\nassistant: "
    ours.encode(prompt(USER))
    assert ours.template is not None
    assert (ours.template.incomplete, ours.template.example) == (1, "p.jsonl: row 1, message 2 (assistant)")


def test_the_clock_stands_still(tiny: Path, tmp_path: Path) -> None:
    ours = encoder(tiny, tmp_path, "{{ strftime_now('%d %b %Y %H:%M:%S') }} " + PLAIN)
    assert ours.encode(prompt(USER))[0].startswith("01 Jan 2025 00:00:00 user: ")
    assert ours.recipe() == {"template_time": "2025-01-01T00:00:00"}


def test_variables_of_the_template(tiny: Path, tmp_path: Path) -> None:
    model = with_template(tiny, tmp_path / "model", THOUGHTS)
    assert Encoder(model, arguments={"enable_thinking": False}).encode(prompt(USER))[0].endswith("<think></think>")
    assert Encoder(model, arguments={"enable_thinking": True}).encode(prompt(USER))[0].endswith("assistant: ")
    for name, message in (
        ("enable_thinkin", "has no such variable"),
        ("messages", "sets this itself"),
        ("tools", "itself"),
    ):
        with pytest.raises(UsageError, match=message):
            Encoder(model, arguments={name: False})


def test_a_system_message_goes_first(tiny: Path, tmp_path: Path) -> None:
    ours = encoder(tiny, tmp_path, PLAIN, system="Be brief.")
    assert ours.encode(prompt(USER))[0] == "system: Be brief.\nuser: What is 1+1?\nassistant: "
    with pytest.raises(InputError, match="has a system message of its own"):
        ours.encode(prompt({"role": "system", "content": "s"}, USER))
    deaf = Encoder(with_template(tiny, tmp_path / "deaf", "{{ messages[-1].content }}"), system="Be brief.")
    with pytest.raises(InputError, match="leaves out the text of --system"):
        deaf.encode(prompt(USER))
