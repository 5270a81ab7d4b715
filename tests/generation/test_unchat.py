from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primecli.generation.encoder import Encoder
from primecli.generation.unchat import ChatReader
from tests.generation.templates import ENDED, PARTS, PLAIN, THOUGHTS, with_template

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}system: Be kind.<eos>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}<eos>\n{% endfor %}assistant: "
)
USER = {"role": "user", "content": "What is\n3+4?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "7"}


def reader(tiny: Path, target: Path, template: str, **arguments: Any) -> ChatReader:
    encoder = Encoder(with_template(tiny, target, template), arguments=arguments)
    assert encoder.template is not None
    return ChatReader(encoder.template, encoder.special_texts)


@pytest.mark.parametrize("template", [ENDED, PARTS, DEFAULT_SYSTEM], ids=["ended", "parts", "default-system"])
@pytest.mark.parametrize(
    "messages",
    [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER, ANSWER, {**USER, "content": "Why?"}]],
    ids=len,
)
def test_messages_come_back(template: str, messages: list[dict[str, str]], tiny: Path, tmp_path: Path) -> None:
    reading = reader(tiny, tmp_path / "model", template)
    text = reading.template.text_of(messages)
    assert text is not None
    found = reading.read(text)
    assert found is not None
    assert reading.template.text_of(found) == text
    if template is not PARTS:  # which has no token between messages, so that one may hold the others
        assert found == messages


def test_a_text_of_another_kind_is_not_read(tiny: Path, tmp_path: Path) -> None:
    reading = reader(tiny, tmp_path / "model", ENDED)
    for text in ("3+4=", "user: a<eos>\n", "user: a<eos>\nassistant: b", "user: <pad><eos>\nassistant: ", ""):
        assert reading.read(text) is None, text
    trimmed = reader(tiny, tmp_path / "trimmed", DEFAULT_SYSTEM)
    assert trimmed.read("system: Be kind.<eos>\nuser: a<eos>\nassistant: ") == [{"role": "user", "content": "a"}]
    assert trimmed.read("system: Be kind.<eos>\nuser:  a <eos>\nassistant: ") is None  # the template trims contents


def test_the_arguments_of_the_template_count(tiny: Path, tmp_path: Path) -> None:
    text = "user: a\nassistant: <think></think>"
    assert reader(tiny, tmp_path / "off", THOUGHTS, enable_thinking=False).read(text) == [
        {"role": "user", "content": "a"}
    ]
    assert reader(tiny, tmp_path / "on", THOUGHTS).read(text) is None
    assert reader(tiny, tmp_path / "plain", PLAIN).read("user: a\nassistant: ") == [{"role": "user", "content": "a"}]
