from __future__ import annotations

import pytest

from primecli.shards.questions import questions

CHATML = "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "<s>[INST] {} [/INST]",
        "User: {}\nAssistant:",
        "Solve the problem.\n\n{} Let us think step by step.",
        "<|begin_of_text|>{}",
        "{}",
    ],
)
def test_what_all_prompts_share_is_taken_away(template: str) -> None:
    asked = ["What is 12 + 3?", "What is 12 + 35?", "Is 7 prime?\nSay why.", "What is 12 + 3?"]
    assert questions([template.format(text) for text in asked]) == asked


def test_the_same_words_at_both_ends_belong_to_the_question() -> None:
    asked = ["How many ways are there to choose 2 books?", "How many ways are there to choose 3 books?"]
    assert questions([CHATML.format(text) for text in asked]) == asked


def test_prompts_that_do_not_differ_are_shown_whole() -> None:
    assert questions([" a\nb ", " a\nb "]) == ["a\nb", "a\nb"]
    assert questions([]) == []
    assert questions(["x\n", "x\ny"]) == ["x", "y"]
