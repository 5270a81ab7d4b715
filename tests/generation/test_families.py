"""Chat templates in the manner of those that people train with, each with its special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primecli.errors import InputError, UsageError
from primecli.generation.encoder import Encoder
from primecli.generation.prompts import Prompt
from primecli.generation.responses import ResponseEncoder
from primecli.generation.unchat import ChatReader
from primecli.shards import schema
from tests.conftest import read_rows
from tests.generation.templates import FAMILIES, as_family, with_template
from tests.models.architectures import save
from tests.models.configs.common import EOS

USER = {"role": "user", "content": "What is 1+1?"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"}
NEXT = {"role": "user", "content": "And 2+2?"}
LLAMA3_SYSTEM = "<bos><|start_header_id|>system<|end_header_id|>\n\nToday Date: {}\n\n{}<|eot_id|>"
LLAMA3_USER = "<|start_header_id|>user<|end_header_id|>\n\nWhat is 1+1?<|eot_id|>"
LLAMA3_ANSWER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA_END = "What is 1+1?<end_of_turn>\n<start_of_turn>model\n"
QWEN3_END = "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"


def prompt(*messages: dict[str, Any]) -> Prompt:
    return Prompt("p", list(messages), "2", None, None, None, "p.jsonl: row 1")


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {family: as_family(with_template(tiny, place / family, None), family) for family in FAMILIES}


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("Qwen3", {}, QWEN3_END),
        ("Qwen3", {"arguments": {"enable_thinking": True}}, QWEN3_END),
        ("Qwen3", {"arguments": {"enable_thinking": False}}, QWEN3_END + "<think>\n\n</think>\n\n"),
        ("Qwen3", {"system": "Be brief."}, "<|im_start|>system\nBe brief.<|im_end|>\n" + QWEN3_END),
        ("Llama 3", {}, LLAMA3_SYSTEM.format("01 Jan 2025", "") + LLAMA3_USER + LLAMA3_ANSWER),
        (
            "Llama 3",
            {"system": "Be brief.", "arguments": {"date_string": "26 Jul 2026"}},
            LLAMA3_SYSTEM.format("26 Jul 2026", "Be brief.") + LLAMA3_USER + LLAMA3_ANSWER,
        ),
        ("Gemma 2", {}, f"<bos><start_of_turn>user\n{GEMMA_END}"),
        ("Gemma 3", {"system": "Be brief."}, f"<bos><start_of_turn>user\nBe brief.\n\n{GEMMA_END}"),
        ("Mistral", {}, "<bos>[INST] What is 1+1?[/INST]"),
        ("Mistral", {"system": "Be brief."}, "<bos>[INST] Be brief.\n\nWhat is 1+1?[/INST]"),
        ("R1", {"system": "Be brief."}, "<bos>Be brief.<|User|>What is 1+1?<|Assistant|><think>\n"),
    ],
)
def test_a_question_as_the_family_writes_it(
    models: dict[str, Path], family: str, options: dict[str, Any], expected: str
) -> None:
    encoder = Encoder(models[family], **options)
    text, ids = encoder.encode(prompt(USER))
    assert text == expected
    marks = {token: encoder.tokenizer.get_vocab()[token] for token in FAMILIES[family][1]}
    assert {token: ids.count(number) for token, number in marks.items()} == {
        token: text.count(token) for token in marks
    }, "each mark is one token, and BOS is there once, though the tokenizer adds its own to other texts"
    assert encoder.template is not None
    assert (encoder.template.incomplete, encoder.with_special) == (0, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_template_leaves_out_of_earlier_answers_is_counted(models: dict[str, Path], family: str) -> None:
    encoder = Encoder(models[family])
    text, _ = encoder.encode(prompt(USER, ANSWER, NEXT))
    drops = family in ("Qwen3", "R1")
    assert ("hm" in text, "2" in text, "And 2+2?" in text) == (not drops, True, True)
    assert encoder.template is not None
    assert encoder.template.incomplete == drops
    assert encoder.template.example == ("p.jsonl: row 1, message 2 (assistant)" if drops else "")


def test_a_family_without_a_system_role_says_so_in_one_line(models: dict[str, Path]) -> None:
    told = Encoder(models["Gemma 2"], system="Be brief.")
    with pytest.raises(InputError) as caught:
        told.encode(prompt(USER))
    assert str(caught.value) == (
        f"p.jsonl: row 1: the chat template of {models['Gemma 2']} refuses it: System role not supported "
        "(it takes the prompt without --system; --suffix adds a text to the question)"
    )
    with pytest.raises(InputError, match=r"System role not supported$"):
        Encoder(models["Gemma 2"]).encode(prompt({"role": "system", "content": "Be kind."}, USER))
    with pytest.raises(InputError, match=r"Roles must alternate: user, assistant, user$"):  # --system or not
        Encoder(models["Gemma 3"], system="Be brief.").encode(prompt(USER, NEXT))


def test_a_variable_of_another_family_is_refused(models: dict[str, Path]) -> None:
    for family in FAMILIES:
        if family != "Qwen3":
            with pytest.raises(UsageError, match=r"enable_thinking: the chat template of .* has no such variable"):
                Encoder(models[family], arguments={"enable_thinking": False})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_can_be_read_back_into_messages(models: dict[str, Path], family: str) -> None:
    """Into those that give the same prompt: a thought that is gone is gone."""
    encoder = Encoder(models[family])
    assert encoder.template is not None
    reader = ChatReader(encoder.template, encoder.special_texts)
    assert reader.read(encoder.encode(prompt(USER))[0]) == [USER]
    text, _ = encoder.encode(prompt(USER, ANSWER, NEXT))
    read = reader.read(text)
    assert read is not None
    assert [message["role"] for message in read] == ["user", "assistant", "user"]
    assert encoder.template.text_of(read) == text


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("Qwen3", "<|im_end|>"),
        ("Llama 3", "<|eot_id|>"),
        ("Gemma 3", "<end_of_turn>"),
        ("Mistral", "<eos>"),
        ("R1", "<eos>"),
    ],
)
def test_imported_responses_end_as_the_family_ends_turns(models: dict[str, Path], family: str, end: str) -> None:
    found = ResponseEncoder(Encoder(models[family])).end
    assert found is not None
    assert found[0] == end


def test_every_end_that_the_generation_config_names_ends_a_response(tmp_path: Path, primecli: Any) -> None:
    """As in Qwen3's: the end of a turn and that of a document; here also a letter, so that it comes up often."""
    model = as_family(save("Qwen3", tmp_path / "model", vocab_size=260), "Qwen3")
    settings = json.loads((model / "generation_config.json").read_text())
    ends = [259, EOS, 70, 133]
    (model / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": ends[:1] + ends[2:]}))
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{number}+1?", "answer": "1"}) + "\n" for number in range(6)))
    command = ["generate", "--model", model, "--prompts", path, "--n", 16, "--max-tokens", 60, "--temperature", 1.5]
    primecli(*command, "--chat-template-arg", "enable_thinking=false", "--out", tmp_path / "g", "--quiet")
    rows = read_rows(tmp_path / "g")
    assert all(row[schema.PROMPT].endswith("<think>\n\n</think>\n\n") for row in rows)
    assert not any(set(ends) & set(row[schema.RESPONSE_IDS][:-1]) for row in rows)
    assert {row[schema.RESPONSE_IDS][-1] for row in rows if row[schema.FINISH_REASON] == "stop"} == set(ends)
    primecli("check-logprobs", "--model", model, "--max-gap", 1e-4, tmp_path / "g", "--quiet")
