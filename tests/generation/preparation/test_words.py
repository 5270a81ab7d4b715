from __future__ import annotations

import numpy as np
import pyarrow as pa

from primecli.generation.preparation.words import HashSet, Vocabulary, Words, gram_hashes, without_common


def encoded(*texts: str) -> tuple[Vocabulary, Words]:
    vocabulary = Vocabulary()
    middle = len(texts) // 2
    return vocabulary, vocabulary.encode([pa.array(texts[:middle], pa.string()), pa.array(texts[middle:], pa.string())])


def spelled(vocabulary: Vocabulary, words: Words) -> list[list[str]]:
    return [[vocabulary.words[word] for word in words.of(text)] for text in range(len(words.starts) - 1)]


def test_words_are_letters_and_digits_in_one_case() -> None:
    vocabulary, words = encoded("Find $x_1$:  A+B", "", "¿?", "质数 ABC", "Straße İ")
    assert spelled(vocabulary, words)[:4] == [["find", "x", "1", "a", "b"], [], [], ["质", "数", "abc"]]
    assert len(words.of(4)) == 2


def test_hashes_are_equal_for_equal_grams_and_stop_at_the_end_of_a_text() -> None:
    _, words = encoded("a b c d", "x a b c", "c d")
    hashes, valid = gram_hashes(words, 3)
    assert valid.tolist() == [True, True, False, False, True, True, False, False, False, False]
    assert hashes[0] == hashes[5]
    assert len(np.unique(hashes[valid])) == 3


def test_a_set_of_hashes_finds_its_own_and_nothing_else() -> None:
    draws = np.random.default_rng(0)
    values = draws.integers(0, 2**64, 5000, dtype=np.uint64)
    members, others = values[:2500], values[2500:]
    mixed = np.concatenate([others, members])
    places, which = HashSet(members).places(mixed, np.ones(len(mixed), bool))
    assert places.tolist() == list(range(2500, 5000))
    assert (np.unique(members)[which] == mixed[places]).all()


def test_wording_that_a_data_source_shares_is_taken_out_once_it_is_common() -> None:
    instruction = "please put your final answer into a box at the end"
    texts = [f"problem {number} has words w{number} {instruction}" for number in range(40)]
    vocabulary, words = encoded(*texts, "another set says the same: " + instruction)
    source_of = np.array([0] * 40 + [1])
    stripped, found = without_common(words, source_of, ["ours", "other"], vocabulary)
    assert spelled(vocabulary, stripped)[:2] == [["problem", str(n), "has", "words", f"w{n}"] for n in (0, 1)]
    assert len(stripped.of(40)) == len(words.of(40))
    (common,) = found
    assert (common.source, common.prompts, common.looked_at) == ("ours", 40, 40)
    assert common.phrase in instruction


def test_copies_do_not_make_a_problem_common() -> None:
    text = "a problem of quite a few words that is in the file forty times"
    vocabulary, words = encoded(*[text] * 40)
    stripped, found = without_common(words, np.zeros(40, int), ["ours"], vocabulary)
    assert not found
    assert stripped is words
