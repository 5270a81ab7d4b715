"""Chat templates of several kinds, and tokenizers that have them."""

from __future__ import annotations

import json
import shutil
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
ENDED = "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>\n{% endfor %}assistant: "


def with_template(model: Path, target: Path, template: str | None) -> Path:
    """The tokenizer of a model, with another chat template, or without one. Returns the target."""
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(model / name, target / name)
    if template is not None:
        (target / "chat_template.jinja").write_text(template)
    return target


def adding(model: Path, before: list[str], after: list[str]) -> Path:
    """Makes the tokenizer of a model put tokens around every text, in place. Returns the model."""
    path = model / "tokenizer.json"
    values: dict[str, Any] = json.loads(path.read_text())
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": token, "type_id": 0}} for token in before]
    single += [text, *({"SpecialToken": {"id": token, "type_id": 0}} for token in after)]
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in (("<eos>", 256), ("<pad>", 257))
        },
    }
    path.write_text(json.dumps(values))
    return model
