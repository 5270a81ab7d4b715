from __future__ import annotations

import pyarrow as pa

from primecli.generation.preparation.contamination import Benchmark, find_hits, gram_sizes
from primecli.generation.preparation.words import Vocabulary

LONG = [f"b{number}" for number in range(60)]
SHORT = [f"s{number}" for number in range(12)]
TINY = ["compute", "3", "+", "4"]
NOTHING = ["compute", "5"]


def hits(*texts: str, size: int = 13) -> dict[int, tuple[str, float, int]]:
    vocabulary = Vocabulary()
    items = [" ".join(item) for item in (LONG, SHORT, TINY, NOTHING)]
    benchmark = Benchmark(["long", "short", "tiny", "nothing"], items, vocabulary.encode([pa.array(items)]))
    found = find_hits(vocabulary.encode([pa.array(texts)]), texts.__getitem__, benchmark, size)
    return {
        int(prompt): (benchmark.names[item], share, int(longest))
        for prompt, item, share, longest in zip(found.prompt, found.item, found.share, found.longest, strict=True)
    }


def test_whole_prompts_in_longer_text() -> None:
    texts = [f"look: {' '.join(item).upper()} is it" for item in (LONG, SHORT, TINY)]
    assert hits(*texts, "nothing to see") == {0: ("long", 1.0, 60), 1: ("short", 1.0, 12), 2: ("tiny", 1.0, 3)}


def test_share_and_longest_run_of_parts() -> None:
    begins, ends = " ".join(LONG[:20]), " ".join(LONG[45:])
    found = hits(f"{ends} x {begins}", " ".join(LONG[:12]), f"{' '.join(LONG[:30])} {' '.join(LONG[:30])}")
    assert found[0] == ("long", 35 / 60, 20)
    assert 1 not in found  # 12 words in a row are not 13
    assert found[2] == ("long", 0.5, 30)


def test_short_prompts_are_looked_for_by_8_words() -> None:
    with_a_change = [*SHORT[:9], "other", *SHORT[10:]]
    assert hits(" ".join(with_a_change)) == {0: ("short", 9 / 12, 9)}


def test_a_tiny_prompt_counts_with_its_signs_only() -> None:
    assert hits("Compute 3 + 4.", "compute $3$ - 4", "compute 3 +\n4 and more").keys() == {0, 2}


def test_two_words_say_nothing_inside_of_another_prompt() -> None:
    assert hits("Compute 5 + 6", "Compute 5.") == {1: ("nothing", 1.0, 2)}


def test_the_prompt_of_which_most_is_there_is_named() -> None:
    assert hits(f"{' '.join(LONG[:20])} {' '.join(SHORT)}")[0][0] == "short"


def test_sizes_of_n_grams() -> None:
    vocabulary = Vocabulary()
    words = vocabulary.encode([pa.array([" ".join(LONG), " ".join(LONG[:38]), " ".join(LONG[:39]), "a b", ""])])
    assert gram_sizes(words, 13).tolist() == [13, 8, 13, 2, 0]
    assert gram_sizes(words, 20).tolist() == [20, 8, 8, 2, 0]
