"""Near duplicates: MinHash over word 5-grams, LSH for the pairs to look at, and a comparison word by word of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from primecli.generation.preparation.words import Words, blocks, gram_hashes, mixed

if TYPE_CHECKING:
    import numpy as np

GRAM = 5
BANDS, ROWS = 42, 3
"""With 3 hashes a band, a pair of Jaccard similarity 0.58, as of 60 words of which 3 were changed, is missed once in
10,000 times, one of 0.48 once in 100, and pairs that share a phrase or two hardly ever meet."""

NEIGHBOURS = 8
"""Pairs for each prompt in a bucket, at most."""

LARGE = 32
"""In a bucket of more prompts, only those with the same numbers are paired: they are made from one template, and other
numbers are other problems."""

LEAST_SIMILARITY = 0.2
"""Of the estimate, which is off by 0.04 or so: one word in ten changed leaves 0.33."""

BAG = 64  # kinds of words by which pairs are looked at before they are compared word by word
MAX_LEADERS = 64  # of a cluster that a prompt is compared with
SEED = 0x5EED


def signatures(words: Words) -> np.ndarray:
    """(D, BANDS * ROWS) uint32: the MinHash of each text's 5-grams; of all its words where it has fewer."""
    import numpy as np

    count = BANDS * ROWS
    draws = np.random.Generator(np.random.PCG64(SEED))
    factors = draws.integers(1, 2**63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = draws.integers(0, 2**63, count, dtype=np.uint64)
    found = np.zeros((len(words.starts) - 1, count), np.uint32)
    for first, last in blocks(len(found), 2048):  # so that the hashes of a block stay in the cache
        part = words.part(first, last)
        hashes, starts = _shingles(part)
        for number in range(count):
            values = ((hashes * factors[number] + shifts[number]) >> np.uint64(32)).astype(np.uint32)
            found[first:last, number] = np.minimum.reduceat(values, starts)
    return found


def _shingles(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the 5-grams of each text, at least one for each, and where each text's begin."""
    import numpy as np

    hashes, valid = gram_hashes(words, GRAM)
    lengths = words.lengths()
    counts = np.maximum(lengths - GRAM + 1, 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    found = np.zeros(starts[-1], np.uint64)
    is_long = lengths >= GRAM
    found[np.repeat(is_long, counts)] = hashes[valid]
    values = mixed(words.ids.astype(np.uint64) + np.uint64(1))
    for text in np.flatnonzero(~is_long):
        value = 0
        for word in values[words.starts[text] : words.starts[text + 1]]:
            value = (value * 0x100000001B3 + int(word)) % 2**64
        found[starts[text]] = value
    return found, starts[:-1]


def candidates(signature: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(P, 2) int64: pairs of texts that may be near duplicates, each once, the lower number first, sorted.

    order: (D,) uint64: equal for texts with the same numbers.
    """
    import numpy as np

    total = len(signature)
    found = np.zeros(0, np.int64)
    for band in range(BANDS):
        rows = signature[:, band * ROWS : (band + 1) * ROWS].astype(np.uint64)
        key = mixed(mixed(rows[:, 0] << np.uint64(32) | rows[:, 1]) ^ rows[:, 2])
        sorting = np.lexsort((order, key))  # stable, so by number last
        keys, numbers = key[sorting], order[sorting]
        _, size = np.unique(keys, return_counts=True)
        is_large = np.repeat(size > LARGE, size)
        pairs = []
        for distance in range(1, NEIGHBOURS + 1):
            same = np.flatnonzero(keys[distance:] == keys[:-distance])
            if not len(same):
                break
            same = same[~is_large[same] | (numbers[same] == numbers[same + distance])]
            ends = np.sort(np.stack([sorting[same], sorting[same + distance]]), axis=0)
            pairs.append(ends[0] * total + ends[1])
        if pairs:
            new = np.setdiff1d(np.unique(np.concatenate(pairs)), found, assume_unique=True)
            found = np.union1d(found, new[_similar(signature, new // total, new % total)])
    return np.stack([found // total, found % total], axis=1)


def _similar(signature: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the estimate of the Jaccard similarity is high enough for a closer look."""
    import numpy as np

    least = LEAST_SIMILARITY * signature.shape[1]
    parts = [
        (signature[first[begin:end]] == signature[second[begin:end]]).sum(axis=1) >= least
        for begin, end in blocks(len(first), 1 << 16)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def plausible(words: Words, pairs: np.ndarray, allowed: np.ndarray, is_number: np.ndarray) -> np.ndarray:
    """(P,) bool: False for pairs that a comparison word by word would surely call different, which is most of them.

    allowed: (P,) how many words each may differ in. is_number: by word.
    """
    import numpy as np

    bags = _bags(words)
    kept = np.zeros(len(pairs), bool)
    for begin, end in blocks(len(pairs), 1 << 16):
        first, second = (bags[pairs[begin:end, side]].astype(np.int16) for side in (0, 1))
        more = np.maximum(first - second, 0).sum(axis=1), np.maximum(second - first, 0).sum(axis=1)
        kept[begin:end] = np.maximum(*more) <= allowed[begin:end]
    places = np.flatnonzero(kept)
    lengths = words.lengths()
    places = places[lengths[pairs[places, 0]] == lengths[pairs[places, 1]]]
    for begin, end in blocks(len(places)):
        some = places[begin:end]
        first, second = (words.take(pairs[some, side]) for side in (0, 1))
        differs = first.ids != second.ids
        other_number = differs & is_number[first.ids] & is_number[second.ids]
        few = np.add.reduceat(differs, first.starts[:-1], dtype=np.int64) <= allowed[some]
        kept[some[few & np.logical_or.reduceat(other_number, first.starts[:-1])]] = False
    return kept


def _bags(words: Words) -> np.ndarray:
    """(D, BAG) uint8: how often a word of each kind is in a text; words are sorted into kinds by a hash."""
    import numpy as np

    kinds = (mixed(words.ids.astype(np.uint64)) % np.uint64(BAG)).astype(np.int64)
    found = np.zeros((len(words.starts) - 1, BAG), np.uint8)
    for first, last in blocks(len(found)):
        lengths = words.lengths()[first:last]
        places = np.repeat(np.arange(last - first) * BAG, lengths) + kinds[words.starts[first] : words.starts[last]]
        counts = np.bincount(places, minlength=(last - first) * BAG).reshape(-1, BAG)
        found[first:last] = np.minimum(counts, 255)
    return found


def number_keys(words: Words, is_number: np.ndarray) -> np.ndarray:
    """(D,) uint64: equal for texts with the same numbers. is_number: by word."""
    import numpy as np

    values = mixed(words.ids.astype(np.uint64) + np.uint64(7)) * is_number[words.ids]
    sums = np.add.reduceat(np.append(values, np.uint64(0)), words.starts[:-1])
    sums[words.lengths() == 0] = 0
    return sums


def leaders(
    pairs: Iterator[tuple[int, int]], rank: Callable[[int], tuple[int, int]], alike: Callable[[int, int], bool]
) -> dict[int, int]:
    """For each text that duplicates another, the one that it duplicates, which is itself no duplicate.

    pairs: those that are alike. rank: the text of the lowest rank in a cluster is the first to be kept. alike: whether
    two texts of a cluster are alike.
    """
    parent: dict[int, int] = {}

    def root(text: int) -> int:
        while (above := parent.setdefault(text, text)) != text:
            parent[text] = parent[above]
            text = above
        return text

    for first, second in pairs:
        parent[root(second)] = root(first)
    clusters: dict[int, list[int]] = {}
    for text in parent:
        clusters.setdefault(root(text), []).append(text)
    duplicate_of = {}
    for members in clusters.values():
        kept: Sequence[int] = ()
        for text in sorted(members, key=rank):
            original = next((other for other in kept[:MAX_LEADERS] if alike(other, text)), None)
            if original is None:
                kept = (*kept, text)
            else:
                duplicate_of[text] = original
    return duplicate_of
