"""Encoding of prompts to text and token ids by a model's tokenizer, and decoding of responses to text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primecli.errors import InputError, UsageError, first_line
from primecli.files import Json
from primecli.generation.chat import NOW, ChatTemplate
from primecli.generation.prompts import Prompt


class Encoder:
    """A model's tokenizer and chat template.

    directory: the model's.
    use_template: whether a prompt that is a text becomes a message of the user, if the tokenizer has a chat template;
        otherwise it is taken as it is.
    system, arguments: see `ChatTemplate`.
    encoded: how many prompts it has encoded.
    wrapped, bare: how many prompts were texts that became messages, and texts that were taken as they are.
    with_special: how many prompts that went through the template hold the text of a special token.

    Raises InputError where the tokenizer cannot be loaded, UsageError where the options need a chat template.
    """

    def __init__(
        self,
        directory: Path,
        *,
        use_template: bool = True,
        system: str = "",
        arguments: Mapping[str, Json] | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        self.directory = directory
        self.encoded = self.wrapped = self.bare = self.with_special = 0
        self._recipe: dict[str, Json] = {}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            self.tokenizer("1")  # uses settings that loading does not look at, such as model_max_length
        except Exception as error:  # the libraries raise what they like, even a plain Exception
            raise InputError(f"{directory}: its tokenizer cannot be loaded: {first_line(error)}") from error
        self.use_template = use_template and bool(self.tokenizer.chat_template)
        self.template: ChatTemplate | None = None
        if self.tokenizer.chat_template:
            self.template = ChatTemplate(self.tokenizer, directory, system=system, arguments=arguments or {})
        elif system or arguments:
            option = "--system" if system else "--chat-template-arg"
            raise UsageError(f"{option}: the tokenizer of {directory} has no chat template", "leave it out")

    def encode(self, prompt: Prompt) -> tuple[str, list[int]]:
        """The prompt's text and its token ids. Messages go through the chat template, and so do texts if told to.

        Raises InputError where the prompt has no tokens, or cannot go through the template unharmed.
        """
        if isinstance(prompt.content, str) and not self.use_template:
            if prompt.tools:
                raise InputError(f"{prompt.name}: has tools, which only a chat template can show")
            self.bare += 1
            text, ids = prompt.content, self._bare_ids(prompt.content)
        else:
            text = self._templated(prompt)
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise InputError(f"{prompt.name}: the prompt has no tokens")
        self.encoded += 1
        return text, ids

    def recipe(self) -> dict[str, Json]:
        """What was done to the prompts encoded so far that neither the options nor the model determine alone."""
        return dict(self._recipe)

    def _templated(self, prompt: Prompt) -> str:
        if self.template is None:
            raise InputError(
                f"{self.directory}: the prompts are messages, but its tokenizer has no chat template",
                "use a model with a chat template, or prompts in plain text",
            )
        if isinstance(prompt.content, str):
            if mark := next((text for text in self.special_texts if prompt.content.lstrip().startswith(text)), None):
                raise InputError(
                    f"{prompt.name}: begins with {mark}, as if the chat template had been applied already",
                    "--no-chat-template takes it as it is",
                )
            self.wrapped += 1
            self._recipe["chat_template"] = "user-message"
        text = self.template.render(prompt)
        if self.template.wants_parts:
            self._recipe["content_parts"] = True
        if self.template.asks_time:
            self._recipe["template_time"] = NOW.isoformat()
        contents = [prompt.content] if isinstance(prompt.content, str) else [str(m["content"]) for m in prompt.content]
        self.with_special += any(special in content for content in contents for special in self.special_texts)
        return text

    @functools.cached_property
    def special_texts(self) -> list[str]:
        """The texts of the special tokens, the longest first."""
        added = self.tokenizer.added_tokens_decoder.values()
        texts = {*self.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        return sorted(texts - {""}, key=len, reverse=True)

    @functools.cached_property
    def added(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before a text, such as BOS, and those that it puts after it, such as EOS."""
        bare, full = (list(self.tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
        starts = (start for start in range(len(full)) if bare and full[start : start + len(bare)] == bare)
        start = next(starts, None)
        return ([], []) if start is None else (full[:start], full[start + len(bare) :])

    def _bare_ids(self, text: str) -> list[int]:
        """The ids of a text that goes through no template: nothing after it, and BOS only once."""
        before, after = self.added
        ids = list(self.tokenizer(text)["input_ids"])
        if after:
            ids = ids[: -len(after)]
            self._recipe["prompt_end"] = "open"
        if before and ids[len(before) : 2 * len(before)] == before:
            ids = ids[len(before) :]
            self._recipe["bos"] = "once"
        return ids

    def decode(self, ids: Any) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
