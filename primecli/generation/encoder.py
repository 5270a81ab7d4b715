"""Encoding of prompts to text and token ids by a model's tokenizer, and decoding of responses to text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from primecli.errors import InputError, first_line
from primecli.generation.prompts import Prompt


class Encoder:
    """A model's tokenizer and chat template. Raises InputError where the tokenizer cannot be loaded."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        self.directory = directory
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{directory}: its tokenizer cannot be loaded: {first_line(error)}") from error

    def encode(self, prompt: Prompt) -> tuple[str, list[int]]:
        """The prompt's text and its token ids; a list of messages goes through the chat template.

        Raises InputError where the prompt is not valid Unicode, has no tokens, or cannot go through the template.
        """
        try:
            json.dumps(prompt.content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"prompt {prompt.prompt_id} is not valid Unicode text: {error.reason}") from error
        if isinstance(prompt.content, str):
            text, ids = prompt.content, self.tokenizer(prompt.content)["input_ids"]
        else:
            if not self.tokenizer.chat_template:
                raise InputError(
                    f"{self.directory}: the prompts are messages, but its tokenizer has no chat template",
                    "use a model with a chat template, or prompts in plain text",
                )
            text = self._template(prompt.prompt_id, prompt.content)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"prompt {prompt.prompt_id} has no tokens")
        return text, ids

    def _template(self, prompt_id: str, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise InputError(
                f"prompt {prompt_id}: the chat template of {self.directory} refuses it: {error}"
            ) from error

    def decode(self, ids: Any) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
