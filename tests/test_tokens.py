from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from primecli.tokens import Piece, load_tokenizer, pieces, printable, safe_json


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("text", ["a b\n", "naïve", "数学 is 🎉!", "🎉", "e\u0301"])
def test_pieces_join_to_the_text_and_share_characters(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text).ids
    found = pieces(byte_level, ids)
    assert "".join(piece.text for piece in found) == text
    assert [piece.first for piece in found] == [0, *(piece.last for piece in found[:-1])]
    assert found[-1].last == len(ids)
    assert [len(piece.text) for piece in found] == [1] * len(text)


def test_bytes_that_are_no_character_are_still_shown(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("数").ids[:2] + byte_level.encode("ab").ids
    found = pieces(byte_level, ids)
    assert found[-1].last == len(ids)
    assert "".join(piece.text for piece in found).endswith("ab")


def test_spaces_that_a_decoder_drops_at_the_start_are_kept(tmp_path: Path) -> None:
    """Metaspace tokenizers (SentencePiece) decode a token alone without its space."""
    tokenizer = Tokenizer(models.WordLevel({"▁two": 0, "▁words": 1, "?": 2}, unk_token="?"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = pieces(load_tokenizer(tmp_path), [0, 1, 2])
    assert found == [Piece("two", 0, 1), Piece(" words", 1, 2), Piece("?", 2, 3)]


def test_a_terminal_is_not_steered() -> None:
    assert printable("a\x1b]0;title\x07b\r\n\tc\x7f\x9b\u202e\u00a0d") == "a␛]0;title␇b␍\n c␡\ufffd\ufffd d"
    assert printable("naïve 数学 🎉") == "naïve 数学 🎉"


def test_json_stays_what_it_is() -> None:
    text = "a\x9b\u202e\U000e0041 数🎉\x1b"
    written = safe_json(json.dumps({"a": text}, ensure_ascii=False))
    assert json.loads(written) == {"a": text}
    assert "数🎉" in written
    assert written.isprintable()


def test_an_id_that_the_tokenizer_does_not_have_is_a_number(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("ab").ids
    assert [piece.text for piece in pieces(byte_level, [ids[0], 999, ids[1]])] == ["a", "<999>", "b"]
    half = byte_level.encode("数").ids[:2]
    assert pieces(byte_level, [*half, 999]) == [Piece("\ufffd", 0, 2), Piece("<999>", 2, 3)]
