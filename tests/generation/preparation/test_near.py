from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from primecli.generation.preparation.near import candidates, leaders, number_keys, plausible, signatures
from primecli.generation.preparation.words import Vocabulary, Words

WORDS = [f"w{number}" for number in range(3000)]


def made(draws: random.Random, size: int) -> list[str]:
    return draws.choices(WORDS, k=size)


def changed(draws: random.Random, text: list[str], share: float) -> list[str]:
    text = list(text)
    for place in draws.sample(range(len(text)), round(share * len(text))):
        text[place] = draws.choice(WORDS)
    return text


def words_of(texts: list[list[str]]) -> Words:
    return Vocabulary().encode([pa.array([" ".join(text) for text in texts])])


def shingles(text: list[str]) -> set[tuple[str, ...]]:
    return {tuple(text[place : place + 5]) for place in range(len(text) - 4)}


def test_signatures_estimate_the_jaccard_similarity_of_5_grams() -> None:
    draws = random.Random(0)
    texts = [made(draws, 200)]
    texts += [changed(draws, texts[0], share) for share in (0.0, 0.02, 0.05, 0.1)]
    found = signatures(words_of(texts))
    for text, signature in zip(texts, found, strict=True):
        ours, theirs = shingles(texts[0]), shingles(text)
        exact = len(ours & theirs) / len(ours | theirs)
        assert np.mean(signature == found[0]) == pytest.approx(exact, abs=0.15)  # 126 draws: 3.3 standard deviations


def test_pairs_with_one_word_in_twenty_changed_meet_and_unrelated_ones_do_not() -> None:
    draws = random.Random(1)
    originals = [made(draws, draws.randint(60, 120)) for _ in range(200)]
    words = words_of([*originals, *(changed(draws, text, 0.05) for text in originals)])
    pairs = candidates(signatures(words), np.zeros(400, np.uint64))
    found = set(map(tuple, pairs.tolist()))
    assert len(found & {(number, number + 200) for number in range(200)}) >= 198
    assert len(found) <= 200


def test_of_one_template_mostly_those_with_the_same_numbers_meet() -> None:
    texts = [["so"] * 4 + ["many", "pears", "and", str(number // 2)] for number in range(200)]
    words = words_of(texts)
    is_number = np.zeros(300, bool)
    is_number[3:] = True
    keys = number_keys(words, is_number)
    assert len(np.unique(keys)) == 100
    found = set(map(tuple, candidates(signatures(words), keys).tolist()))
    assert {(number, number + 1) for number in range(0, 200, 2)} <= found
    assert len(found) < 600  # of 19,900 pairs that share most of their words


def test_leaders_are_no_duplicates_and_alike_to_what_follows_them() -> None:
    near = {(a, b) for a, b in combinations(range(6), 2) if b - a <= 1}  # a chain, whose ends are not alike
    found = leaders(iter(sorted(near)), lambda text: (0, text), lambda a, b: (min(a, b), max(a, b)) in near)
    assert found == {1: 0, 3: 2, 5: 4}
    found = leaders(iter([(0, 1)]), lambda text: (int(text == 0), text), lambda a, b: True)
    assert found == {0: 1}  # the first has a mark already


def test_pairs_that_cannot_be_duplicates_are_seen_at_once() -> None:
    texts = [
        "a b c d e 1 g h i j",
        "a b c d e 2 g h i j",
        "a b c d e f 1 g h i",
        "a b x y e 1 g h i j",
        "a b c d e 1 g h i",
    ]
    vocabulary = Vocabulary()
    words = vocabulary.encode([pa.array(texts)])
    pairs = np.array([[0, other] for other in range(5)])
    digits = np.array([word.isdigit() for word in vocabulary.words])
    found = plausible(words, pairs, np.full(5, 1.0), digits)
    assert found.tolist() == [True, False, True, False, True]
    assert plausible(words, pairs, np.full(5, 2.0), digits).tolist() == [True, False, True, True, True]
    assert plausible(words, pairs[[3]], np.full(1, 2.0), np.ones(len(digits), bool)).tolist() == [False]
