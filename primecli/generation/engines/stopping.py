"""Texts that end a response, such as </answer>, wherever the tokens' boundaries are.

A response ends with the first token with which its text has a stop text in it. That token stays, and so may some text
after the stop text: the ids are exactly what was sampled, their log-probabilities belong to them, and the response's
text is that of the ids. (vLLM's own default cuts the text, but not the ids; transformers cuts neither.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from primecli.generation.engines import Policy, Sample
from primecli.models.token_text import BROKEN

BYTES = 4  # of a character at most, and each may be a token


class StopTexts:
    """Finds where responses end.

    texts: the stop texts, which may be those of special tokens. tokenizer: the policy's, as transformers loads it; it
        is only used where there are texts.
    """

    def __init__(self, texts: Sequence[str] = (), tokenizer: Any = None) -> None:
        self.texts = tuple(texts)
        self.tokenizer = tokenizer
        self._longest = max(map(len, self.texts), default=0)
        self._last = {text[-1] for text in self.texts}
        self._may_complete: dict[int, bool] = {}

    def completed(self, ids: np.ndarray) -> bool:
        """Whether the last of these tokens completes a stop text, if those before it do not hold one.

        ids: (T,), a response's first tokens.
        """
        if not self.texts or not self._may(int(ids[-1])):
            return False
        size = BYTES * (self._longest + 1)  # so many tokens hold every text that ends in the last one, unless some
        while size < len(ids) and len(self._decode(ids[-size:-1])) <= self._longest:
            size *= 2  # stand for no text at all
        return self._holds_one(ids[-size:]) and (size >= len(ids) or self._holds_one(ids))

    def cut(self, sample: Sample) -> Sample:
        """The sample without what comes after the token that completes a stop text."""
        ids = sample.token_ids
        if not self.texts or not self._holds_one(ids):
            return sample
        end = 1 + bisect_left(range(1, len(ids)), True, key=lambda length: self._holds_one(ids[:length]))
        return Sample(ids[:end], sample.logprobs[:end], "stop")

    def _may(self, token: int) -> bool:
        """Whether a token's text has the last character of a stop text in it, or the end of one."""
        if token not in self._may_complete:
            twice = self._decode([token, token])  # a decoder may drop a space before the first token
            self._may_complete[token] = BROKEN in twice or not self._last.isdisjoint(twice)
        return self._may_complete[token]

    def _holds_one(self, ids: Sequence[int] | np.ndarray) -> bool:
        text = self._decode(ids)
        return any(stop in text for stop in self.texts)

    def _decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return str(
            self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


NO_STOP_TEXTS = StopTexts()


def stop_texts(policy: Policy) -> StopTexts:
    """What finds the policy's stop texts."""
    if not policy.stop_texts:
        return NO_STOP_TEXTS
    from primecli.generation.encoder import Encoder

    return StopTexts(policy.stop_texts, Encoder(policy.directory).tokenizer)
