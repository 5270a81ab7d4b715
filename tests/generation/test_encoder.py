from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from primecli.errors import InputError, UsageError
from primecli.generation.encoder import Encoder
from primecli.generation.prompts import Prompt
from tests.generation.templates import PLAIN, adding, with_template

EOS, PAD = 256, 257


def prompt(content: Any, tools: list[dict[str, Any]] | None = None) -> Prompt:
    return Prompt("p", content, "2", None, None, tools, "p.jsonl: row 1")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A tokenizer with a chat template."""
    return with_template(tiny, tmp_path / "model", PLAIN)


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    """A tokenizer without a chat template."""
    return with_template(tiny, tmp_path / "base", None)


def test_a_text_is_a_message_of_the_user_where_there_is_a_template(model: Path, base: Path) -> None:
    wrapped = Encoder(model)
    text, ids = wrapped.encode(prompt("1+1?"))
    assert (text, len(ids)) == ("user: 1+1?\nassistant: ", 22)
    assert (wrapped.wrapped, wrapped.bare, wrapped.recipe()) == (1, 0, {"chat_template": "user-message"})
    for bare in (Encoder(model, use_template=False), Encoder(base)):
        assert bare.encode(prompt("1+1?"))[0] == "1+1?"
        assert (bare.wrapped, bare.bare, bare.recipe()) == (0, 1, {})


@pytest.mark.parametrize(
    ("before", "after", "text", "ids", "recipe"),
    [
        ([], [], "a", [64], {}),
        (["<eos>"], [], "a", [EOS, 64], {}),
        (["<eos>"], [], "<eos>a", [EOS, 64], {"bos": "once"}),
        (["<eos>"], [], "<eos><eos>a", [EOS, EOS, 64], {"bos": "once"}),
        (["<eos>", "<pad>"], [], "<eos><pad>a", [EOS, PAD, 64], {"bos": "once"}),
        ([], ["<eos>"], "a", [64], {"prompt_end": "open"}),
        ([], ["<eos>"], "a<eos>", [64, EOS], {"prompt_end": "open"}),
        (["<pad>"], ["<eos>"], "<pad>a", [PAD, 64], {"prompt_end": "open", "bos": "once"}),
    ],
)
def test_a_text_begins_once_and_does_not_end(
    base: Path, before: list[str], after: list[str], text: str, ids: list[int], recipe: dict[str, str]
) -> None:
    encoder = Encoder(adding(base, before, after))
    assert encoder.encode(prompt(text)) == (text, ids)
    assert encoder.recipe() == recipe


def test_the_template_alone_says_where_messages_begin_and_end(model: Path) -> None:
    encoder = Encoder(adding(model, ["<pad>"], ["<eos>"]))
    _, ids = encoder.encode(prompt([{"role": "user", "content": "a"}]))
    assert not {EOS, PAD} & set(ids)


def test_special_tokens_in_a_question_are_counted_and_at_its_start_refused(model: Path) -> None:
    encoder = Encoder(model)
    encoder.encode(prompt("a"))
    _, ids = encoder.encode(prompt([{"role": "user", "content": "a<eos>b"}]))
    assert EOS in ids
    assert (encoder.with_special, encoder.encoded) == (1, 2)
    with pytest.raises(
        InputError, match=r"row 1: begins with <eos>, as if .* \(--no-chat-template takes it as it is\)"
    ):
        encoder.encode(prompt(" <eos>user: a"))
    assert Encoder(model, use_template=False).encode(prompt("<eos>user: a"))[1][0] == EOS


def test_what_needs_a_template_is_refused_without_one(model: Path, base: Path) -> None:
    for option, message in (({"system": "s"}, "--system"), ({"arguments": {"a": 1}}, "--chat-template-arg")):
        with pytest.raises(UsageError, match=f"{message}: the tokenizer of .*base has no chat template"):
            Encoder(base, **option)
    with pytest.raises(InputError, match="its tokenizer has no chat template"):
        Encoder(base).encode(prompt([{"role": "user", "content": "a"}]))
    for encoder in (Encoder(base), Encoder(model, use_template=False)):
        with pytest.raises(InputError, match="row 1: has tools, which only a chat template can show"):
            encoder.encode(prompt("a", [{"name": "f"}]))
    with pytest.raises(InputError, match="row 1: the prompt has no tokens"):
        Encoder(base).encode(prompt(""))


def test_a_response_is_decoded_as_it_is_whatever_clean_up_the_tokenizer_asks_for(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"right": 0, ".": 1, "<eos>": 2, "?": 3}, unk_token="?"))
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=True
    ).save_pretrained(tmp_path)
    assert Encoder(tmp_path).decode([0, 1, 2]) == "right ."
