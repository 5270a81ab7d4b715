"""From a prompt after the chat template back to its messages, for trainers that apply the template themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from primecli.generation.chat import ChatTemplate
from primecli.generation.messages import Message

MOST_TURNS = 64  # of a conversation


class ChatReader:
    """Reads the texts that a chat template has made.

    template: with the arguments that it had then. special: the texts of special tokens, which no content has.
    """

    def __init__(self, template: ChatTemplate, special: Sequence[str]) -> None:
        self.template = template
        self.special = special
        self._known: dict[tuple[str, ...], list[str] | None] = {}

    def read(self, text: str) -> list[Message] | None:
        """The messages that the template turns into exactly this text; None where there are none.

        Of several ways to read it, the one with the fewest messages counts, so a system message that the template adds
        by itself is not among them.
        """
        for roles in self._conversations(text):
            contents = _split(text, self._marks(roles) or [])
            if contents is None or any(mark in content for mark in self.special for content in contents):
                continue
            messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
            if self.template.text_of(messages) == text:
                return messages
        return None

    def _conversations(self, text: str) -> Iterator[tuple[str, ...]]:
        """The roles of conversations that may be in a text, the shortest first."""
        for turns in range(MOST_TURNS):
            roles = ("assistant", "user") * turns
            for start in (("user",), ("system", "user")):
                yield (*start, *roles)
            marks = self._marks(("user", "assistant", "user"))
            if marks is None or text.count(marks[1]) <= turns:  # of what begins an answer
                return

    def _marks(self, roles: tuple[str, ...]) -> list[str] | None:
        """What the template puts before, between and after the contents of messages; None where it has not all."""
        if roles not in self._known:
            probes = [f"primecli probe {number} 7b1f" for number in range(len(roles))]
            messages = [{"role": role, "content": probe} for role, probe in zip(roles, probes, strict=True)]
            self._known[roles] = _split(self.template.text_of(messages) or "", ["", *probes, ""])
        return self._known[roles]


def _split(text: str, marks: Sequence[str]) -> list[str] | None:
    """What stands between marks, of which the first begins and the last ends the text; None where they do not.

    >>> _split("<u>a</u><u>b</u>", ["<u>", "</u><u>", "</u>"])
    ['a', 'b']
    """
    if len(marks) < 2 or not text.startswith(marks[0]):
        return None
    found = []
    start = len(marks[0])
    for mark in marks[1:-1]:
        end = text.find(mark, start)
        if end < 0:
            return None
        found.append(text[start:end])
        start = end + len(mark)
    end = len(text) - len(marks[-1])
    if end < start or not text.endswith(marks[-1]):
        return None
    return [*found, text[start:end]]
