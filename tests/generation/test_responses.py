from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers

from primecli.generation.encoder import Encoder
from primecli.generation.responses import ResponseEncoder
from primecli.models.steps import last_of_steps
from primecli.models.token_text import Speller
from tests.generation.templates import ENDED, PARTS, PLAIN, with_template

EOS = 256


@pytest.mark.parametrize(
    ("template", "end"), [(PLAIN, None), (PARTS, None), (ENDED, ("<eos>", EOS)), (None, ("<eos>", EOS))]
)
def test_a_response_ends_as_the_template_ends_a_message(
    template: str | None, end: tuple[str, int] | None, tiny: Path, tmp_path: Path
) -> None:
    responses = ResponseEncoder(Encoder(with_template(tiny, tmp_path / "model", template)))
    assert responses.end == end
    (ids,) = responses.encode(["a b"])
    assert ids is not None
    assert (len(ids), ids[-1] == EOS) == (3 + (end is not None), end is not None)
    assert responses.without_end("a b<eos>\n") == ("a b<eos>\n" if end is None else "a b")
    assert responses.without_end("a b\n") == "a b\n"


def test_a_response_that_the_tokenizer_changes_has_no_ids(tiny: Path, tmp_path: Path) -> None:
    model = with_template(tiny, tmp_path / "model", ENDED)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(model / "tokenizer.json"))
    responses = ResponseEncoder(Encoder(model))
    composed, decomposed, special = "\u00e9", "e\u0301", "a<pad>b"
    encoded = responses.encode([composed, decomposed, special, " a , b \n"])
    assert [ids is None for ids in encoded] == [False, True, True, False]
    assert responses.encode([]) == []


@pytest.mark.parametrize("byte_level", [True, False])
@pytest.mark.parametrize("steps", [["a", "b"], ["€", "a€", "b"], ["a\n", "\nb", "c"], ["one"], ["a ", " b"]])
def test_steps_end_where_the_separator_says_too(steps: list[str], byte_level: bool, tiny: Path, tmp_path: Path) -> None:
    model = with_template(tiny, tmp_path / "model", ENDED)
    if not byte_level:
        settings = json.loads((model / "tokenizer.json").read_text())
        settings["model"]["vocab"]["<0x0A>"] = 258  # so that the bytes of tokens are not counted
        (model / "tokenizer.json").write_text(json.dumps(settings))
    responses = ResponseEncoder(Encoder(model))
    (ids,) = responses.encode(["\n\n".join(steps)])
    assert ids is not None
    ends = responses.step_ends(ids, steps)
    assert ends is not None
    assert (len(ends), ends[-1]) == (len(steps), len(ids) - 1)
    texts = Speller(model).texts(ids)
    starts = [0, *(end + 1 for end in ends[:-1])]
    spelled = ["".join(texts[start : end + 1]) for start, end in zip(starts, ends, strict=True)]
    assert spelled == [f"{step}\n\n" for step in steps[:-1]] + [f"{steps[-1]}<eos>"]
    if not any("\n" in step for step in steps):
        assert last_of_steps(texts, "\n\n").nonzero()[0].tolist() == ends


def test_a_step_without_a_token_of_its_own_is_not_placed(tiny: Path, tmp_path: Path) -> None:
    model = with_template(tiny, tmp_path / "model", ENDED)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens(["\n\nb\n\n"])
    tokenizer.save(str(model / "tokenizer.json"))
    responses = ResponseEncoder(Encoder(model))
    (ids,) = responses.encode(["a\n\nb\n\nc"])
    assert ids is not None
    assert responses.step_ends(ids, ["a", "b", "c"]) is None
    assert responses.step_ends(ids, ["a", "x", "c"]) is None  # another text than that of the tokens
