"""Exact and near duplicates of prompts, and duplicates whose answers differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from primecli.generation.preparation import answers
from primecli.generation.preparation.alike import Alike, compare, is_number
from primecli.generation.preparation.near import candidates, leaders, number_keys, plausible, signatures
from primecli.generation.preparation.words import Vocabulary, Words

if TYPE_CHECKING:
    import numpy as np

    from primecli.generation.preparation.rows import Prompts


@dataclass(slots=True)
class Duplicates:
    """What repeats what.

    exact, near: for each prompt that is the same as another, or nearly, the number of that other, which itself is no
        duplicate. conflicts: pairs of a duplicate and what it repeats whose answers differ.
    """

    exact: dict[int, int] = field(default_factory=dict)
    near: dict[int, int] = field(default_factory=dict)
    conflicts: list[tuple[int, int]] = field(default_factory=list)

    def of(self) -> dict[int, int]:
        """Exact and near ones together."""
        return {**self.exact, **self.near}


@dataclass(frozen=True, slots=True)
class Unique:
    """The different texts of prompts, in the order in which they come.

    members: the numbers of the prompts with each text. of_prompt: (D,) the place of each prompt's text among them.
    """

    members: Sequence[list[int]]
    of_prompt: np.ndarray

    def first(self) -> np.ndarray:
        """The first prompt with each text."""
        import numpy as np

        return np.array([numbers[0] for numbers in self.members], np.int64)


def unique_texts(prompts: Prompts) -> Unique:
    """The different texts. Case, the amount of white space, and white space beside signs make no difference."""
    import numpy as np

    places: dict[bytes, int] = {}
    members: list[list[int]] = []
    of_prompt = []
    for number, key in enumerate(_text_keys(prompts)):
        place = places.setdefault(key, len(members))
        if place == len(members):
            members.append([])
        members[place].append(number)
        of_prompt.append(place)
    return Unique(members, np.array(of_prompt, np.int64))


def _text_keys(prompts: Prompts) -> Iterator[bytes]:
    import pyarrow.compute as pc

    for chunk in prompts.table["text"].chunks:
        plain = pc.utf8_lower(pc.utf8_normalize(chunk, "NFKC"))
        plain = pc.replace_substring_regex(plain, r"\s*([^\pL\pM\pN\s])\s*", r"\1")
        plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"\s+", " "))
        for text in plain.to_pylist():
            yield hashlib.blake2b(text.encode(), digest_size=16).digest()


def find(
    prompts: Prompts,
    unique: Unique,
    words: Words,
    vocabulary: Vocabulary,
    *,
    near: float,
    is_marked: Sequence[bool],
    verifiers: Sequence[str],
    workers: int | None,
    step: Callable[[str], None],
) -> Duplicates:
    """Finds duplicates. Of several that are alike the first is kept, one without another mark if there is one.

    unique: the different texts. words: of each of them, without what its data source shares. near: the share of the
    words that near duplicates have in common; 1 for none but exact ones. is_marked: whether a prompt has a mark
    already. verifiers: of each prompt. step: called with what is done next.
    """
    truths = prompts.table["ground_truth"].to_pylist()
    found = Duplicates()
    kept = []
    for members in unique.members:
        original = min(members, key=lambda number: (is_marked[number], number))
        found.exact |= {number: original for number in members if number != original}
        kept.append(original)
    if near < 1:
        step("looking for near duplicates")
        found.near = _near(prompts, words, vocabulary, kept, near, is_marked, truths, verifiers)
        found.exact = {number: found.near.get(first, first) for number, first in found.exact.items()}
    step("comparing the answers of duplicates")
    found.conflicts = _conflicts(found.of(), truths, verifiers, workers)
    return found


def _near(
    prompts: Prompts,
    words: Words,
    vocabulary: Vocabulary,
    kept: Sequence[int],
    near: float,
    is_marked: Sequence[bool],
    truths: Sequence[str | None],
    verifiers: Sequence[str],
) -> dict[int, int]:
    """The near duplicates among prompts of different texts, each with what it repeats. kept: one of each text."""
    import numpy as np

    numbers = np.array(kept)
    has_words = words.lengths() > 0
    if has_words.sum() < 2:
        return {}
    part = words if has_words.all() else words.take(np.flatnonzero(has_words))
    numbers = numbers[has_words]
    lengths = part.lengths()
    numeric = np.array([is_number(word) for word in vocabulary.words])
    pairs = candidates(signatures(part), number_keys(part, numeric))
    digits = np.array([word[:1].isdigit() for word in vocabulary.words])
    pairs = pairs[plausible(part, pairs, _allowed(lengths, pairs, near), digits)]
    known: dict[tuple[int, int], bool] = {}

    def alike(first: int, second: int) -> bool:
        pair = (min(first, second), max(first, second))
        if pair not in known:
            most = float(_allowed(lengths, np.array([pair]), near)[0])
            a, b = (int(numbers[each]) for each in pair)
            result = compare(prompts.text(a), prompts.text(b), most) if most >= 0 else Alike.no
            known[pair] = result is Alike.yes or (
                result is Alike.unless_answers_differ and answers.differ(truths[a], truths[b], verifiers[a]) is not True
            )
        return known[pair]

    def rank(text: int) -> tuple[int, int]:
        return int(is_marked[numbers[text]]), int(numbers[text])

    found = leaders(((int(a), int(b)) for a, b in pairs if alike(int(a), int(b))), rank, alike)
    return {int(numbers[text]): int(numbers[original]) for text, original in found.items()}


def _allowed(lengths: np.ndarray, pairs: np.ndarray, near: float) -> np.ndarray:
    """(P,) float64: how many words each pair may differ in; -1 where their lengths differ by more."""
    import numpy as np

    first, second = lengths[pairs[:, 0]], lengths[pairs[:, 1]]
    allowed = (1 - near) * np.maximum(first, second) + 1e-9
    return np.where(np.abs(first - second) <= allowed, allowed, -1.0)


def _conflicts(
    duplicate_of: dict[int, int], truths: Sequence[str | None], verifiers: Sequence[str], workers: int | None
) -> list[tuple[int, int]]:
    """The pairs of a duplicate and its original whose answers differ."""
    found, open_ = [], []
    for number, original in sorted(duplicate_of.items()):
        different = answers.differ(truths[original], truths[number], verifiers[number])
        if different:
            found.append((number, original))
        elif different is None:
            open_.append((number, original))
    pairs = [(str(truths[original]), str(truths[number])) for number, original in open_]
    verdicts = answers.differing(pairs, workers)
    return sorted([*found, *(pair for pair, differs in zip(open_, verdicts, strict=True) if differs)])
