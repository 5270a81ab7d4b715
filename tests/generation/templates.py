"""Chat templates of several kinds, and tokenizers that have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}assistant: "
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{{ '\\n' }}{% endif %}{% for m in messages %}{{ m.role }}: "
    "{% if m.role == 'tool' %}{{ m.name }} {{ m.content | tojson }}{% else %}{{ m.content or '' }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}{{ '\\n' }}"
    "{% endfor %}assistant: "
)
THOUGHTS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] | trim }}\n{% endfor %}assistant: "
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)
KNOWN = {"<eos>": 256, "<pad>": 257}
ENDED = "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>\n{% endfor %}assistant: "

# What follows does what the templates of these families do, in words of our own: the same marks, the same turns, the
# same refusals. `FAMILIES` names them, with the special tokens that they write.
_SYSTEM_FIRST = "{% set head = messages[0].content if messages[0].role == 'system' else none %}"
_LAST_QUESTION = (
    "{% set at = namespace(question=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set at.question = loop.index0 %}{% endif %}{% endfor %}"
)
QWEN3 = (  # thoughts before the last question go; no thinking is an empty thought that the prompt ends with
    _SYSTEM_FIRST + _LAST_QUESTION + "{% if head is not none %}<|im_start|>system\n{{ head }}<|im_end|>\n{% endif %}"
    "{% for m in messages if m.role != 'system' %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and loop.index0 + (head is not none) < at.question and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3 = (  # always has a system turn, with the date in it
    _SYSTEM_FIRST
    + "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
    "{{ head | default('', true) | trim }}<|eot_id|>{% for m in messages if m.role != 'system' %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GEMMA_TURNS = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate: user, assistant, user') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ prefix if loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA2 = (  # knows no system message
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set turns, prefix = messages, '' %}" + _GEMMA_TURNS
)
GEMMA3 = (  # puts the system message into the first question
    "{{ bos_token }}{% set turns, prefix = messages, '' %}{% if messages[0].role == 'system' %}"
    "{% set turns, prefix = messages[1:], messages[0].content + '\n\n' %}{% endif %}" + _GEMMA_TURNS
)
MISTRAL = (  # puts the system message into the last question
    "{{ bos_token }}{% set turns, head = messages, '' %}{% if messages[0].role == 'system' %}"
    "{% set turns, head = messages[1:], messages[0].content + '\n\n' %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ head if loop.last else '' }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
R1 = (  # drops every thought, and begins the new one
    _SYSTEM_FIRST + "{{ bos_token }}{{ head | default('', true) }}{% for m in messages %}"
    "{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
FAMILIES = {
    "Qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>"]),
    "Llama 3": (LLAMA3, ["<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "Gemma 2": (GEMMA2, ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "Gemma 3": (GEMMA3, ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "Mistral": (MISTRAL, ["<bos>", "[INST]", "[/INST]"]),
    "R1": (R1, ["<bos>", "<|User|>", "<|Assistant|>"]),
}


def as_family(model: Path, family: str) -> Path:
    """Gives a model's tokenizer the chat template and the special tokens of a family, in place. Returns the model.

    Its BOS goes before every text, as with the tokenizers of these families that have one.
    """
    from transformers import AutoTokenizer

    template, tokens = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    if "<bos>" in tokens:
        tokenizer.bos_token = "<bos>"
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    if "<bos>" in tokens:
        adding(model, ["<bos>"], [], known={"<bos>": tokenizer.get_vocab()["<bos>"]})
    return model


def with_template(model: Path, target: Path, template: str | None) -> Path:
    """The tokenizer of a model, with another chat template, or without one. Returns the target."""
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(model / name, target / name)
    if template is not None:
        (target / "chat_template.jinja").write_text(template)
    return target


def adding(model: Path, before: list[str], after: list[str], *, known: Mapping[str, int] = KNOWN) -> Path:
    """Makes the tokenizer of a model put tokens around every text, in place. Returns the model. known: their ids."""
    path = model / "tokenizer.json"
    values: dict[str, Any] = json.loads(path.read_text())
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": token, "type_id": 0}} for token in before]
    single += [text, *({"SpecialToken": {"id": token, "type_id": 0}} for token in after)]
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in known.items()},
    }
    path.write_text(json.dumps(values))
    return model
