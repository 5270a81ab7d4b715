"""Contamination: how much of a benchmark's prompt stands, word for word, in a prompt to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from primecli.generation.preparation.alike import tokens
from primecli.generation.preparation.words import HashSet, Words, blocks, gram_hashes, ranges

if TYPE_CHECKING:
    import numpy as np

SHORT_GRAM = 8
SHORT = 3
"""A benchmark's prompt of fewer than this many n-grams' length is short: with one word changed in its middle, it would
have no long n-gram left."""

WHOLE = 3
"""A benchmark's prompt of fewer words than this says nothing inside of another: "Compute" stands in thousands."""

AT_THE_ENDS = ".?!$ "
"""Characters at the ends of a prompt that do not matter."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The prompts of benchmarks. names: such as "math500.jsonl: row 3". texts: as they stand. words: of each, without
    what all of its file share."""

    names: Sequence[str]
    texts: Sequence[str]
    words: Words


@dataclass(frozen=True, slots=True)
class Hits:
    """For each prompt with an n-gram of a benchmark, the benchmark's prompt that it has most of.

    prompt: (H,) its number, sorted. item: (H,) the number of the benchmark's prompt. share: (H,) of the words of the
    benchmark's prompt that are in common n-grams. longest: (H,) words of the longest common run.
    """

    prompt: np.ndarray
    item: np.ndarray
    share: np.ndarray
    longest: np.ndarray


def gram_sizes(words: Words, size: int) -> np.ndarray:
    """(D,) the n of each text of a benchmark: `size`, 8 for a short one, all of it for one with fewer than 8 words."""
    import numpy as np

    lengths = words.lengths()
    short = min(SHORT_GRAM, size)
    return np.where(lengths >= SHORT * size, size, np.minimum(lengths, short))


def find_hits(words: Words, text: Callable[[int], str], benchmark: Benchmark, size: int) -> Hits:
    """Compares prompts with a benchmark. words: of the prompts, by the same vocabulary. text: of each, by number.

    A benchmark's prompt of fewer than 8 words must stand in the prompt as a whole, with its signs and numbers; one of
    fewer than 3 words must be the prompt.
    """
    import numpy as np

    sizes = gram_sizes(benchmark.words, size)
    parts = [_hits_of_size(words, benchmark, sizes, int(n)) for n in np.unique(sizes[sizes > 0])]
    table = np.concatenate([np.zeros((4, 0)), *parts], axis=1)
    table = table[:, _keep(table, text, benchmark, sizes)]
    best = np.lexsort((table[1], -table[3], -table[2], table[0]))  # by prompt, then the largest share
    table = table[:, best]
    is_first = np.ones(table.shape[1], bool)
    is_first[1:] = np.diff(table[0]) != 0
    prompt, item, share, longest = table[:, is_first]
    return Hits(prompt.astype(np.int64), item.astype(np.int64), share, longest.astype(np.int64))


def _keep(table: np.ndarray, text: Callable[[int], str], benchmark: Benchmark, sizes: np.ndarray) -> np.ndarray:
    """(H,) False for hits of a very short prompt whose signs and numbers do not stand there too."""
    import numpy as np

    kept = np.ones(table.shape[1], bool)
    for place in np.flatnonzero(sizes[table[1].astype(np.int64)] < SHORT_GRAM):
        prompt, item = int(table[0, place]), int(table[1, place])
        wanted = _signs_and_words(benchmark.texts[item])
        found = _signs_and_words(text(prompt))
        kept[place] = wanted == found if sizes[item] < WHOLE else f" {wanted} " in f" {found} "
    return kept


def _signs_and_words(text: str) -> str:
    return " ".join(tokens(text.strip(AT_THE_ENDS)))


def _hits_of_size(words: Words, benchmark: Benchmark, sizes: np.ndarray, size: int) -> np.ndarray:
    """(4, H): prompt, item, share and longest run, of the benchmark's prompts with n-grams of this size."""
    import numpy as np

    items = np.flatnonzero(sizes == size)
    ours = benchmark.words.take(items)
    hashes, valid = gram_hashes(ours, size)
    places = np.flatnonzero(valid)
    places = places[np.argsort(hashes[places], kind="stable")]
    grams = HashSet(hashes[places])
    first = np.searchsorted(hashes[places], grams.values)
    counts = np.diff(np.append(first, len(places)))
    item_of = np.repeat(np.arange(len(items)), ours.lengths())
    found = []
    for begin, end in blocks(len(words.starts) - 1):
        part = words.part(begin, end)
        at, which = grams.places(*gram_hashes(part, size))
        if len(at):
            prompt_of = np.searchsorted(part.starts, at, side="right") - 1
            repeated = counts[which]
            where = places[np.repeat(first[which], repeated) + ranges(repeated)]  # in the benchmark
            prompt, start = np.repeat(prompt_of, repeated), np.repeat(at - part.starts[prompt_of], repeated)
            item = item_of[where]
            found.append(_measure(prompt + begin, start, item, where - ours.starts[item], ours.lengths(), size))
    if not found:
        return np.zeros((4, 0))
    table = np.concatenate(found, axis=1)
    table[1] = items[table[1].astype(np.int64)]
    return table


def _measure(
    prompt: np.ndarray, start: np.ndarray, item: np.ndarray, where: np.ndarray, lengths: np.ndarray, size: int
) -> np.ndarray:
    """(4, H): prompt, item, share and longest run, of each pair of a prompt and an item.

    For each n-gram in common: prompt, start: where it is. item, where: where it is in the benchmark. lengths: of items.
    """
    import numpy as np

    def bounds(*columns: np.ndarray) -> np.ndarray:
        """Where one of these changes, and at the start."""
        changes = np.ones(len(columns[0]), bool)
        changes[1:] = np.any([np.diff(column) != 0 for column in columns], axis=0)
        return np.flatnonzero(changes)

    order = np.lexsort((where, item, prompt))
    pair = bounds(prompt[order], item[order])
    place = where[order]
    new = np.full(len(place), size)
    new[1:] = np.minimum(np.diff(place), size)  # words that this n-gram covers and the one before it does not
    new[pair] = size
    covered = np.add.reduceat(new, pair)
    of_item = item[order][pair]
    # runs: n-grams that follow one another in the prompt and in the benchmark
    along = np.lexsort((start, start - where, item, prompt))
    step = np.ones(len(along), np.int64)
    runs = bounds(prompt[along], item[along], (start - where)[along], start[along] - np.arange(len(along)))
    length = np.add.reduceat(step, runs) + size - 1
    pair_of_run = bounds(prompt[along][runs], item[along][runs])
    longest = np.maximum.reduceat(length, pair_of_run)
    return np.stack([prompt[order][pair], of_item, covered / lengths[of_item], longest]).astype(np.float64)
