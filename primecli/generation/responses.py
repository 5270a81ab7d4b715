"""Responses that exist as text, as the token ids that a sampler would have recorded for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from primecli.generation.encoder import Encoder
from primecli.models.token_text import Speller

STEP_JOINT = "\n\n"
"""What stands between the steps of a response that is given as a list of them."""

FALLBACK = "<0x0A>"  # a token of this name stands for one byte


class ResponseEncoder:
    """Encodes responses to the prompts of an `Encoder`.

    end: the text and the id of the token with which a message ends, such as <|im_end|>; None where the chat template
        ends messages without one. Without a template it is the tokenizer's end-of-sequence token.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.tokenizer: Any = encoder.tokenizer
        self.end = self._end()
        self._speller: Speller | None = None

    def _end(self) -> tuple[str, int] | None:
        tokenizer = self.tokenizer
        if self.encoder.template is None:
            return None if tokenizer.eos_token is None else (str(tokenizer.eos_token), int(tokenizer.eos_token_id))
        after = self.encoder.template.after_answer().lstrip()
        text = next((mark for mark in self.encoder.special_texts if after.startswith(mark)), None)
        return None if text is None else (text, int(tokenizer.convert_tokens_to_ids(text)))

    def without_end(self, text: str) -> str:
        """The text without the end token that some files write out after every response."""
        bare = text.rstrip()
        return bare.removesuffix(self.end[0]) if self.end is not None and bare.endswith(self.end[0]) else text

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of each response, the end token last; None where they do not decode to exactly its text."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        last = [] if self.end is None else [self.end[1]]
        return [[*ids, *last] if self.decoded(ids) == text else None for ids, text in zip(encoded, texts, strict=True)]

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens, and with every space that there is."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def step_ends(self, ids: Sequence[int], steps: Sequence[str]) -> list[int] | None:
        """The index of the token at which each step ends, the last one with the response; what stands between two steps
        belongs to the first of them.

        ids: of the response, whose text is the steps joined by STEP_JOINT. None where a step has no token of its own,
        or where the tokens' texts do not add up to the response.
        """
        ends = self._byte_ends(ids, steps)
        if ends is None:
            ends = self._spelled_ends(ids, steps)
        if ends is None:
            return None
        found = [*ends, len(ids) - 1]
        return found if all(first < second for first, second in pairwise(found)) else None

    def _byte_ends(self, ids: Sequence[int], steps: Sequence[str]) -> list[int] | None:
        """Where all steps but the last end, found by counting bytes; None where tokens are not made of bytes."""
        if self._token_bytes is None:
            return None
        own = ids if self.end is None else ids[:-1]
        token_ends = np.cumsum(self._token_bytes[np.asarray(own, dtype=np.int64)])  # (T,) where each token's bytes end
        step_ends = np.cumsum([len(step.encode()) + len(STEP_JOINT) for step in steps])
        if not len(own) or token_ends[-1] != step_ends[-1] - len(STEP_JOINT):
            return None
        return list(np.searchsorted(token_ends, step_ends[:-1]).tolist())

    @functools.cached_property
    def _token_bytes(self) -> np.ndarray | None:
        """(V,): how many bytes of text each id stands for; None for a tokenizer that is not byte-level."""
        from tokenizers.pre_tokenizers import ByteLevel

        backend = self.tokenizer.backend_tokenizer
        vocabulary = backend.get_vocab(with_added_tokens=False)
        letters = set().union(*vocabulary)
        if (
            "ByteLevel" not in repr(backend.decoder)
            or not letters <= set(ByteLevel.alphabet())
            or FALLBACK in vocabulary
        ):
            return None
        added = backend.get_added_tokens_decoder()
        sizes = np.zeros(1 + max([*vocabulary.values(), *added]), dtype=np.int64)
        for text, number in vocabulary.items():
            sizes[number] = len(text)  # each of its characters stands for a byte
        for number, token in added.items():
            sizes[number] = len(token.content.encode())
        return sizes

    def _spelled_ends(self, ids: Sequence[int], steps: Sequence[str]) -> list[int] | None:
        """Where all steps but the last end, by the text of each token; None where these are not the response."""
        self._speller = self._speller or Speller(self.encoder.directory)
        texts = self._speller.texts(ids)
        if not "".join(texts).startswith(STEP_JOINT.join(steps)):
            return None
        text_ends = np.cumsum([len(text) for text in texts])  # (T,) where each token's text ends
        step_ends = np.cumsum([len(step) + len(STEP_JOINT) for step in steps[:-1]], dtype=np.int64)
        return list(np.searchsorted(text_ends, step_ends).tolist())
