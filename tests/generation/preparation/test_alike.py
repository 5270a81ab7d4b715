from __future__ import annotations

import pytest

from primecli.generation.preparation.alike import Alike, compare

STORY = "Tom buys 12 pencils for $3 each and gives half of them to his sister. How much did her pencils cost Tom?"


@pytest.mark.parametrize(
    "other",
    [
        STORY.replace("12", "15"),
        STORY.replace("12", "1,200"),
        STORY.replace("half", "a quarter"),
        STORY.replace("12", "twelve hundred"),
        STORY.replace("Tom", "Ann").replace("12", "15"),
        STORY.replace("12 ", ""),
        STORY.replace("$3", "$-3"),
    ],
)
def test_another_number_or_sign_is_another_problem(other: str) -> None:
    assert compare(STORY, other, 10) is Alike.no


@pytest.mark.parametrize(
    "other",
    [
        STORY.upper(),
        STORY.replace(" ", "\n  "),
        STORY.replace("12", "twelve"),
        STORY.replace("sister", "brother").replace("buys", "gets"),
        STORY.replace("Tom buys", "Yesterday, Tom buys"),
        f"**{STORY}**",
    ],
)
def test_other_words_are_the_same_problem(other: str) -> None:
    assert compare(STORY, other, 3) is Alike.yes


def test_more_words_than_allowed_are_another_problem() -> None:
    other = STORY.replace("sister", "brother").replace("buys", "gets")
    assert compare(STORY, other, 2) is Alike.yes
    assert compare(STORY, other, 1) is Alike.no
    assert compare(STORY, STORY + " Explain.", 0.9) is Alike.no


def test_a_number_that_gave_way_to_a_word_is_left_to_the_answers() -> None:
    assert compare(STORY, STORY.replace("12", "some"), 3) is Alike.unless_answers_differ


@pytest.mark.parametrize(
    ("first", "second"),
    [("$3 + 4$", "$3 - 4$"), ("$x^2 = 5$", "$x^2 = -5$"), ("$5/2$", "$5$"), ("first term", "second term")],
)
def test_short_formulas(first: str, second: str) -> None:
    assert compare(f"What is {first}?", f"What is {second}?", 3) is Alike.no
    assert compare(f"What is {first}?", f"what is {first} ?", 0) is Alike.yes
