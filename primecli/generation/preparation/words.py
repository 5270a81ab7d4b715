"""Prompts as words: arrays of word numbers, hashes of their n-grams, and the wording that a whole data source shares.

A word is a run of letters and digits, in lower case; a Chinese or Japanese character is a word of its own. Arrow and
numpy do the work, so that half a million prompts take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

COMMON_GRAM = 8
"""Words of a phrase that is looked for in all prompts of a data source."""

COMMON_SHARE, COMMON_PROMPTS = 0.05, 20
"""A phrase in this share of a data source's prompts, and in so many, is an instruction rather than a problem."""

SAMPLED = 5000  # prompts of a data source that are looked at for such phrases

BLOCK = 8192  # texts that are worked on at once: some MB of words

_SPACE_BETWEEN = r"[^\pL\pM\pN]+"
_ONE_LETTER_WORDS = r"(\p{Han}|\p{Hiragana}|\p{Katakana})"


@dataclass(frozen=True, slots=True)
class Words:
    """The words of several texts, one after the other.

    ids: (N,) int32: the number of each word in the vocabulary.
    starts: (D + 1,) int64: where each text begins, and N at the end.
    """

    ids: np.ndarray
    starts: np.ndarray

    def lengths(self) -> np.ndarray:
        """(D,) int64: how many words each text has."""
        import numpy as np

        return np.diff(self.starts)

    def of(self, text: int) -> np.ndarray:
        """The word numbers of one text."""
        return self.ids[self.starts[text] : self.starts[text + 1]]

    def part(self, first: int, last: int) -> Words:
        """The texts from `first` to before `last`."""
        begin, end = self.starts[first], self.starts[last]
        return Words(self.ids[begin:end], self.starts[first : last + 1] - begin)

    def take(self, texts: np.ndarray) -> Words:
        """The texts of these numbers, in this order."""
        import numpy as np

        lengths = self.lengths()[texts]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.starts[texts] - starts[:-1], lengths) + np.arange(starts[-1])
        return Words(self.ids[places], starts)


class Vocabulary:
    """Numbers words in the order in which they are met. words: by number."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}

    def encode(self, chunks: Iterable[pa.Array]) -> Words:
        """The words of texts, which come in chunks of Arrow strings."""
        import numpy as np

        ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for chunk in chunks:
            found, counts = self._chunk(chunk)
            ids.append(found)
            lengths.append(counts)
        return Words(np.concatenate(ids), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))

    def _chunk(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np
        import pyarrow.compute as pc

        plain = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
        if pc.any(pc.match_substring_regex(plain, _ONE_LETTER_WORDS)).as_py():
            plain = pc.replace_substring_regex(plain, _ONE_LETTER_WORDS, r" \1 ")
        plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, _SPACE_BETWEEN, " "))
        listed = pc.split_pattern(plain, " ")
        coded = listed.flatten().dictionary_encode()
        numbers = np.array([self._number(word) for word in coded.dictionary.to_pylist()] or [0], np.int32)
        ids = numbers[coded.indices.to_numpy(zero_copy_only=False)]
        lengths = pc.list_value_length(listed).to_numpy(zero_copy_only=False).astype(np.int64)
        is_empty = pc.equal(plain, "").to_numpy(zero_copy_only=False)  # which Arrow splits into one empty word
        return ids[~np.repeat(is_empty, lengths)], np.where(is_empty, 0, lengths)

    def _number(self, word: str) -> int:
        number = self._numbers.setdefault(word, len(self.words))
        if number == len(self.words):
            self.words.append(word)
        return number


def mixed(values: np.ndarray) -> np.ndarray:
    """Numbers without a pattern for uint64, one for each: the finaliser of splitmix64."""
    import numpy as np

    values = values.astype(np.uint64)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def gram_hashes(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The hash of the `size` words from each place on, and whether they all belong to one text.

    Returns (N,) uint64 and (N,) bool.
    """
    import numpy as np

    total = len(words.ids)
    hashes = np.zeros(total, np.uint64)
    if total >= size:
        values = mixed(words.ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        rolling = np.zeros(total - size + 1, np.uint64)
        for place in range(size):
            rolling *= np.uint64(0x100000001B3)
            rolling += values[place : total - size + 1 + place]
        hashes[: total - size + 1] = mixed(rolling)
    left = np.repeat(words.starts[1:], words.lengths()) - np.arange(total)  # words of the text from here on
    return hashes, left >= size


class HashSet:
    """A set of hashes that tells quickly of millions whether they belong to it. values: sorted, each once."""

    def __init__(self, values: np.ndarray) -> None:
        import numpy as np

        self.values = np.unique(values)
        self._bits = max(16, int(len(self.values) * 8).bit_length())
        self._table = np.zeros(1 << self._bits, bool)
        self._table[self._slot(self.values)] = True

    def _slot(self, hashes: np.ndarray) -> np.ndarray:
        import numpy as np

        return (hashes >> np.uint64(64 - self._bits)).astype(np.int64)

    def places(self, hashes: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where hashes of the set stand, and which they are: places in `hashes`, places in `values`."""
        import numpy as np

        if not len(self.values):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        likely = np.flatnonzero(self._table[self._slot(hashes)] & valid)
        found = np.minimum(np.searchsorted(self.values, hashes[likely]), len(self.values) - 1)
        right = self.values[found] == hashes[likely]
        return likely[right], found[right]


@dataclass(frozen=True, slots=True)
class Common:
    """A phrase that many prompts of a data source share. source: the data source. prompts: how many of those looked at
    have it, of `looked_at`."""

    source: str
    phrase: str
    prompts: int
    looked_at: int


def without_common(
    words: Words, source_of: np.ndarray, sources: Sequence[str], vocabulary: Vocabulary
) -> tuple[Words, list[Common]]:
    """The texts without the wording that many of their data source share, such as "put the answer in a box".

    A text of which nothing would remain stays as it is. source_of: (D,) the data source of each text, as a place in
    `sources`. Returns also the most frequent phrase of each data source that has any.
    """
    import numpy as np

    found, sets = [], {}
    for number, name in enumerate(sources):
        grams, common = _common_grams(words, np.flatnonzero(source_of == number), vocabulary)
        if common is not None:
            found.append(Common(name, *common))
            sets[number] = HashSet(grams)
    if not found:
        return words, []
    kept, lengths = [], []
    for first, last in blocks(len(source_of)):
        part = words.part(first, last)
        hashes, valid = gram_hashes(part, COMMON_GRAM)
        text_of = np.repeat(np.arange(last - first), part.lengths())
        is_common = np.zeros(len(part.ids), bool)
        for number, phrases in sets.items():
            starts, _ = phrases.places(hashes, valid & (source_of[first:last] == number)[text_of])
            for place in range(COMMON_GRAM):
                is_common[starts + place] = True
        left = np.bincount(text_of[~is_common], minlength=last - first)
        is_common &= (left > 0)[text_of]
        kept.append(part.ids[~is_common])
        lengths.append(np.where(left > 0, left, part.lengths()))
    return Words(np.concatenate(kept), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])), found


def _common_grams(
    words: Words, texts: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, tuple[str, int, int] | None]:
    """The hashes of the phrases that many of these texts share; the most frequent one, in how many, of how many."""
    import numpy as np

    sample = texts[:: max(1, len(texts) // SAMPLED)]
    unique = {words.of(text).tobytes(): text for text in sample}  # copies do not make a problem's wording common
    none = np.zeros(0, np.uint64), None
    if len(unique) < COMMON_PROMPTS:
        return none
    part = words.take(np.array(list(unique.values())))
    hashes, valid = gram_hashes(part, COMMON_GRAM)
    text_of = np.repeat(np.arange(len(unique)), part.lengths())
    places = np.flatnonzero(valid)
    places = places[np.lexsort((text_of[places], hashes[places]))]
    is_first = np.ones(len(places), bool)  # of this phrase in this text
    is_first[1:] = (np.diff(hashes[places]) != 0) | (np.diff(text_of[places]) != 0)
    values, where, counts = np.unique(hashes[places[is_first]], return_index=True, return_counts=True)
    often = counts >= max(COMMON_PROMPTS, COMMON_SHARE * len(unique))
    if not often.any():
        return none
    place = places[is_first][where[np.argmax(counts)]]
    phrase = " ".join(vocabulary.words[word] for word in part.ids[place : place + COMMON_GRAM])
    return values[often], (phrase, int(counts.max()), len(unique))


def blocks(total: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """The bounds of parts of at most `size` texts, so that memory does not grow with their number.

    >>> list(blocks(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for first in range(0, total, size):
        yield first, min(first + size, total)


def ranges(lengths: np.ndarray) -> np.ndarray:
    """0 … n-1 for each n, one after the other.

    >>> import numpy as np
    >>> ranges(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    import numpy as np

    starts: Any = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    found: np.ndarray = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    return found
