"""A tokenizer's chat template: messages in, a prompt out, and nothing lost on the way without a word.

A template may drop what it does not know: tools, a system message, even the question where it expects content in parts.
So what must not be lost is looked for in the text that comes out.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from primecli.errors import InputError, UsageError, first_line
from primecli.files import Json
from primecli.generation.messages import Message, last_of_user
from primecli.generation.prompts import Prompt

NOW = datetime(2025, 1, 1)  # what a template that asks for the time gets, so that a rerun makes the same prompts
PROBE = "primecli probe 7b1f"  # a text that no template has of its own
ANSWER = "primecli answer 7b1f"  # another one
PRINTED_PART = "'type': 'text'"  # where a template prints a list of parts rather than the text in it
RENDERED_TWICE = 16  # prompts: enough to see that a template draws random numbers


class ChatTemplate:
    """The chat template of a tokenizer.

    directory: the model's, for messages.
    system: a system message to put before every prompt; "" for none.
    arguments: values for the template's own variables, such as {"enable_thinking": False}.
    incomplete: how many prompts lost a part of an earlier message, as templates do with earlier thoughts.
    example: one of these prompts, and the message that is not all there, such as "p.jsonl: row 1, message 2 (user)".

    Raises UsageError for an argument that the template does not take.
    """

    def __init__(self, tokenizer: Any, directory: Path, *, system: str, arguments: Mapping[str, Json]) -> None:
        self.tokenizer = tokenizer
        self.directory = directory
        self.system = system
        self.arguments = arguments
        self.incomplete = 0
        self.example = ""
        self._rendered = 0
        template = tokenizer.chat_template
        self._source = template if isinstance(template, str) else json.dumps(template)
        self._check_arguments()

    def _check_arguments(self) -> None:
        own = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) - {"documents", "kwargs"}
        for name in self.arguments:
            if name in own | {"messages"}:
                raise UsageError(f"--chat-template-arg {name}: generate sets this itself")
            if not self._mentions(name):
                raise UsageError(
                    f"--chat-template-arg {name}: the chat template of {self.directory} has no such variable"
                )

    def _mentions(self, name: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self._source) is not None

    @property
    def asks_time(self) -> bool:
        """Whether the template asks for the date or the time, for which it gets `NOW`."""
        return self._mentions("strftime_now")

    @functools.cached_property
    def wants_parts(self) -> bool:
        """Whether the template loses content that is a text and shows content that is a list of parts."""
        for parts in (False, True):
            try:
                text = self._apply([{"role": "user", "content": PROBE}], None, parts=parts)
            except Exception:  # it refuses the probe, which says nothing about the prompts
                continue
            if PROBE in text and PRINTED_PART not in text:
                return parts
        return False

    def render(self, prompt: Prompt) -> str:
        """The text of a prompt; a prompt that is a text becomes a message of the user.

        Raises InputError where the template refuses it, drops what must not be lost, or is not deterministic.
        """
        messages = [{"role": "user", "content": prompt.content}] if isinstance(prompt.content, str) else prompt.content
        if self.system:
            if any(message["role"] in ("system", "developer") for message in messages):
                raise InputError(f"{prompt.name}: has a system message of its own", "leave out --system")
            messages = [{"role": "system", "content": self.system}, *messages]
        text = self._render(prompt, messages)
        if self._rendered < RENDERED_TWICE:
            self._rendered += 1
            if self._render(prompt, messages) != text:
                raise InputError(
                    f"{prompt.name}: the chat template of {self.directory} gives another text each time",
                    "remove what is random from its chat_template.jinja",
                )
        self._check(prompt, messages, text)
        return text

    def after_answer(self) -> str:
        """What the template puts after an answer of the assistant: "" where it puts nothing or refuses the messages."""
        messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": ANSWER}]
        text = self.text_of(messages, asks=False) or ""
        return text.rpartition(ANSWER)[2] if ANSWER in text else ""

    def text_of(self, messages: list[Message], *, asks: bool = True) -> str | None:
        """The messages as text, unchecked; None where the template refuses them. asks: whether an answer follows."""
        try:
            return self._apply(messages, None, parts=self.wants_parts, asks=asks)
        except Exception:  # a template is a program: it may raise anything
            return None

    def _render(self, prompt: Prompt, messages: list[Message]) -> str:
        try:
            return self._apply(messages, prompt.tools, parts=self.wants_parts)
        except Exception as error:  # a template is a program: it may raise anything
            kind = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
            takes_rest = self.system and self.text_of(messages[1:]) is not None
            raise InputError(
                f"{prompt.name}: the chat template of {self.directory} refuses it: {kind}{first_line(error)}",
                "it takes the prompt without --system; --suffix adds a text to the question" if takes_rest else "",
            ) from error

    def _apply(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, *, parts: bool, asks: bool = True
    ) -> str:
        """The messages as text. asks: whether an answer is to follow."""
        shaped = [{**message, "content": _shaped(message.get("content"), parts=parts)} for message in messages]
        clock = {"strftime_now": NOW.strftime} if self.asks_time else {}
        return str(
            self.tokenizer.apply_chat_template(
                shaped, tools=tools, tokenize=False, add_generation_prompt=asks, **{**clock, **self.arguments}
            )
        )

    def _check(self, prompt: Prompt, messages: list[Message], text: str) -> None:
        """Raises InputError where the text lacks what must not be lost; counts what may be."""
        last = last_of_user(messages)
        lost = [
            index
            for index, message in enumerate(messages)
            if not all(_stands(part, text) for part in _parts(message["content"]))
        ]
        for index in lost:
            if index == last or (index > last and messages[index]["role"] != "assistant"):
                raise self._lost(prompt, _named(messages, index), "does its template suit these prompts?")
            if self.system and index == 0:
                raise self._lost(prompt, "the text of --system", "leave it out")
        if lost:
            self.incomplete += 1
            self.example = self.example or f"{prompt.name}, {_named(messages, lost[0])}"
        if not "".join(_parts(messages[last]["content"])).strip():
            raise InputError(f"{prompt.name}: the prompt is empty", "drop the row or fill it in")
        for kind, name in _tool_names(prompt, messages):
            if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                raise self._lost(prompt, f"the {kind} {name}", "use a model whose chat template knows tools")

    def _lost(self, prompt: Prompt, what: str, hint: str) -> InputError:
        return InputError(f"{prompt.name}: the chat template of {self.directory} leaves out {what}", hint)


def _named(messages: list[Message], index: int) -> str:
    return f"message {index + 1} ({messages[index]['role']})"


def _parts(content: str | list[str] | None) -> list[str]:
    return [] if content is None else [content] if isinstance(content, str) else content


def _shaped(content: str | list[str] | None, *, parts: bool) -> Any:
    """The content of a message as the template wants it: one text, or a list of parts."""
    if content is None:
        return None
    return [{"type": "text", "text": text} for text in _parts(content)] if parts else "\n".join(_parts(content))


def _stands(content: str, text: str) -> bool:
    """Whether a content is in a text, as it is or escaped as in JSON, as templates write what tools return."""
    content = content.strip()
    return any(
        form in text for form in (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1])
    )


def _tool_names(prompt: Prompt, messages: list[Message]) -> list[tuple[str, str]]:
    """The tools of a prompt and those that its messages call, each with what it is."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    found = [("tool", tool) for tool in prompt.tools or ()] + [("call of", call) for call in calls]
    names = [(kind, item.get("function", item)) for kind, item in found]
    return [(kind, str(item["name"])) for kind, item in names if isinstance(item, dict) and item.get("name")]
