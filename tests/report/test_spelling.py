from __future__ import annotations

from pathlib import Path

import pytest

from primecli.errors import InputError
from primecli.models import tokenizer_fingerprint
from primecli.report.spelling import Speller, Spellers
from tests.made_runs import make_byte_tokenizer


def byte_ids(directory: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids)


def test_pieces_are_the_tokens_texts(tmp_path: Path) -> None:
    directory = make_byte_tokenizer(tmp_path)
    speller = Speller(directory)
    assert speller.pieces(byte_ids(directory, "1+1\n2"), "1+1\n2") == ["1", "+", "1", "\n", "2"]


def test_special_tokens_are_shown_and_are_no_part_of_the_response(tmp_path: Path) -> None:
    directory = make_byte_tokenizer(tmp_path)
    assert Speller(directory).pieces([*byte_ids(directory, "7"), 256], "7") == ["7", "<eos>"]


def test_a_character_of_several_tokens_stands_with_its_last(tmp_path: Path) -> None:
    directory = make_byte_tokenizer(tmp_path)
    ids = byte_ids(directory, "a€b")
    assert Speller(directory).pieces(ids, "a€b") == ["a", "", "", "€", "b"]
    cut = Speller(directory).pieces(ids[:3], "a\ufffd")
    assert cut == ["a", "", "\ufffd"]


def test_spaces_that_hang_on_the_token_before_are_kept(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    words = Tokenizer(models.WordLevel({"▁Hello": 0, "▁world": 1, "!": 2}, unk_token="!"))
    words.decoder = decoders.Metaspace()
    words.save(str(tmp_path / "tokenizer.json"))
    assert Speller(tmp_path).pieces([0, 1, 2], "Hello world!") == ["Hello", " world", "!"]


def test_another_tokenizer_spells_nothing(tmp_path: Path) -> None:
    directory = make_byte_tokenizer(tmp_path)
    speller = Speller(directory)
    assert speller.pieces([1, 2, 3], "something else") is None
    assert speller.pieces([9999], "x") is None


def record(model: str, identity: str | None) -> list[dict[str, object]]:
    return [{"stage": "generate", "config": {"model": model}, "models": {"tokenizer": identity}}]


def test_it_is_found_from_above_the_shard_and_only_when_it_is_the_same(tmp_path: Path) -> None:
    directory = make_byte_tokenizer(tmp_path / "project" / "work" / "sft")
    (directory / "config.json").write_text("{}")
    shard = tmp_path / "project" / "work" / "run" / "1" / "verify" / "rollouts.parquet"
    identity = tokenizer_fingerprint(directory)
    assert Spellers().find(shard, record("work/sft", identity)) is not None
    other = Spellers()
    assert other.find(shard, record("work/sft", "another")) is None
    assert list(other.missing) == ["work/sft"]


def test_one_that_is_known_serves_where_its_directory_has_gone(tmp_path: Path) -> None:
    directory = make_byte_tokenizer(tmp_path / "policy" / "1")
    (directory / "config.json").write_text("{}")
    identity = tokenizer_fingerprint(directory)
    spellers = Spellers()
    first = spellers.find(tmp_path / "a", record(str(directory), identity))
    assert spellers.find(tmp_path / "b", record(str(tmp_path / "policy" / "2"), identity)) is first


def test_a_named_tokenizer_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer.json"):
        Spellers(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Spellers(tmp_path)
