"""A prompt's messages and tools, as a chat template takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from primecli.generation.values import as_object, from_json, is_null

PROMPT_FORMS = "a prompt is a text or a list of {role, content}"
ANSWERING = ("assistant", "model")  # the roles that the policy is to speak in

Message: TypeAlias = dict[str, Any]


class UnusableError(Exception):
    """A prompt that cannot be used. Its arguments: what is wrong, and what to do about it."""


def read_content(value: Any, *, padded: bool) -> str | list[Message]:
    """The text or the messages of a prompt; a text that is a JSON list of messages is decoded.

    A message keeps all its fields. Its content is a text, a list of the texts in it where it is in parts, or None,
    beside other fields. padded: whether nulls inside may only stand for fields that are not there.

    Raises UnusableError.
    """
    if is_null(value):
        raise UnusableError("the prompt is null", "drop the row or fill it in")
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, str):
        messages = from_json(value) if value.lstrip()[:1] == "[" else None
        if not (isinstance(messages, list) and messages and all(map(_looks_like_a_message, messages))):
            return value
        value, padded = messages, False
    if not isinstance(value, list) or not value or not all(map(_looks_like_a_message, value)):
        raise UnusableError(f"the prompt is {type(value).__name__}", PROMPT_FORMS)
    messages = [_message(message, number, padded=padded) for number, message in enumerate(value, start=1)]
    if messages[-1]["role"] in ANSWERING:
        raise UnusableError(
            f"the prompt ends with the answer, a message of the role {messages[-1]['role']}",
            "leave that message out of the file, or name another column with --prompt-column",
        )
    return messages


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UnusableError(
            f"the prompt is bytes, and not UTF-8 text: {error.reason} at byte {error.start}", PROMPT_FORMS
        ) from None


def _looks_like_a_message(value: Any) -> bool:
    return (
        isinstance(value, dict) and isinstance(value.get("role"), str) and ("content" in value or "tool_calls" in value)
    )


def _message(message: Mapping[str, Any], number: int, *, padded: bool) -> Message:
    others = {
        name: _without_nulls(value) if padded else value
        for name, value in message.items()
        if name not in ("role", "content") and value is not None and value != []
    }
    if "tool_calls" in others:
        others["tool_calls"] = _tool_calls(others["tool_calls"], number)
    content = _texts(message.get("content"), number)
    if content is None and not others:
        raise UnusableError(f"message {number} of the prompt has no content", PROMPT_FORMS)
    return {"role": message["role"], "content": content, **others}


def _texts(content: Any, number: int) -> str | list[str] | None:
    """The content of a message: its text, or the texts of its parts where it has several."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, bytes):
        return _decoded(content)
    if not isinstance(content, list) or not content:
        raise UnusableError(f"the content of message {number} is {type(content).__name__}", PROMPT_FORMS)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UnusableError(f"message {number} of the prompt has a part of the type {kind}", "only text is used")
        texts.append(text)
    return texts[0] if len(texts) == 1 else texts


def _tool_calls(calls: Any, number: int) -> list[Any]:
    """The tool calls of a message; arguments in JSON text are decoded, since templates expect an object."""
    calls = from_json(calls) if isinstance(calls, str) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UnusableError(f"the tool_calls of message {number} are not a list of objects", "see docs/sampling.md")
    decoded = []
    for call in calls:
        function = call.get("function")
        arguments = as_object(function.get("arguments")) if isinstance(function, dict) else None
        decoded.append(call if arguments is None else {**call, "function": {**function, "arguments": arguments}})
    return decoded


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def read_tools(value: Any, *, padded: bool) -> list[dict[str, Any]] | None:
    """The tools of a prompt, which the chat template shows; None where it has none. JSON text is decoded.

    Raises UnusableError.
    """
    if is_null(value) or (isinstance(value, str) and not value.strip()):
        return None
    listed = from_json(value) if isinstance(value, str) else value
    tools = [as_object(tool) for tool in listed] if isinstance(listed, list) else [None]
    found = [tool for tool in tools if tool is not None]
    if len(found) != len(tools):
        raise UnusableError(
            "the column tools is not a list of JSON objects",
            "rename the column if it does not hold tools for the prompt",
        )
    return [_without_nulls(tool) for tool in found] if padded else found or None


def with_suffix(content: str | list[Message], suffix: str) -> str | list[Message]:
    """The content with a text after the last message of the user, or after the last one if the user has none."""
    if not suffix:
        return content
    if isinstance(content, str):
        return content + suffix
    last = last_of_user(content)
    text = content[last]["content"]
    longer = [*text[:-1], text[-1] + suffix] if isinstance(text, list) else (text or "") + suffix
    return [*content[:last], {**content[last], "content": longer}, *content[last + 1 :]]


def last_of_user(messages: list[Message]) -> int:
    """The index of the user's last message; that of the last message if the user has none."""
    return max(
        (index for index, message in enumerate(messages) if message["role"] == "user"), default=len(messages) - 1
    )
