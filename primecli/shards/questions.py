"""The question in a prompt: what is left when the parts that all prompts share are taken away.

A shard holds the prompt after the chat template, and nothing in it says where the question begins. But the system
prompt, the template's marks and a suffix are the same in every prompt of a data set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Where a question may begin or end: at a line's end, at a mark such as <|im_end|> or [INST], after "User:". Two prompts
# may by chance begin with the same words, and those stay in the question.
AFTER_SHARED = re.compile(r"\n|<[^<>\s]{1,40}>|\[/?INST\]|:(?=\s)")
BEFORE_SHARED = re.compile(r"\n|<[^<>\s]{1,40}>|\[/?INST\]|(?<=[.?!])\s")


def questions(prompts: Sequence[str]) -> list[str]:
    """The question of each prompt; the whole prompt where they do not differ, or have nothing in common.

    >>> questions(["<user>\\nWhat is 1+1?\\n<assistant>", "<user>\\nWhat is 2+2?\\n<assistant>"])
    ['What is 1+1?', 'What is 2+2?']
    """
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < 2:
        return [prompt.strip() for prompt in prompts]
    start = max((match.end() for match in AFTER_SHARED.finditer(_shared(distinct))), default=0)
    first, *others = (prompt[start:] for prompt in distinct)
    shared = len(_shared([text[::-1] for text in (first, *others)]))
    boundary = BEFORE_SHARED.search(first, len(first) - shared)
    end = len(first) - boundary.start() if boundary else 0
    return [prompt[start : len(prompt) - end].strip() or prompt.strip() for prompt in prompts]


def _shared(texts: Sequence[str]) -> str:
    """What all of the texts begin with."""
    low, high = min(texts), max(texts)  # every other text lies between them
    length = next((index for index, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
    return low[:length]
