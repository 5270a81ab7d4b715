"""Texts of tokens, against the bytes that each token of three kinds of tokenizers stands for."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from primecli.errors import InputError
from primecli.models.identity import tokenizer_fingerprint
from primecli.models.token_text import Piece, Speller, Spellers
from tests.made_runs import make_byte_tokenizer

SENTENCES = [
    "The answer is 42, since 6 * 7 = 42.\n\nStep 2: so x  =  3\n",
    "数学很有趣 🎉🎉, and naïve café e\u0301 is a combining mark",
    "def f(x):\n\treturn x ** 2  # 👩‍🔬 🇩🇪\n",
]
TEXTS = [*SENTENCES, "", " ", "  leading", "a", "\n\n", "🎉", "學\n🧮", "\u0301", "Ω≈ç√∫˜µ"]


def byte_level(pattern: bool) -> Tokenizer:
    """As in GPT-2 and Qwen; with `pattern`, text is first split by Llama 3's expression."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    split = pre_tokenizers.Split(r"\s?\p{L}+|\p{N}{1,3}|[^\s\p{L}\p{N}]+|\s+", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level]) if pattern else level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


def llama() -> Tokenizer:
    """As in Llama 2 and Mistral: ▁ for a space, one added in front, bytes for unknown characters."""
    letters = sorted({letter for letter in SENTENCES[0] + SENTENCES[2][:20] if letter not in " \n"})
    vocabulary = ["<unk>", *FALLBACK, "▁", *letters, "▁t", "▁a", "is", "▁▁", "nc", "ce"]
    merges = [("▁", "t"), ("▁", "a"), ("i", "s"), ("▁", "▁"), ("n", "c"), ("c", "e")]
    ids = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    model = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """A Unigram model with Metaspace and byte fallback."""
    letters = sorted(set("".join(SENTENCES)) - set(" 数🎉"))
    scores = [("<unk>", 0.0), *((token, -9.0) for token in FALLBACK), ("▁", -3.0)]
    scores += [(letter, -5.0) for letter in letters] + [("▁answer", -1.0), ("▁is", -1.0), ("ing", -2.0)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def characters() -> Tokenizer:
    """One token per character, joined with nothing in between."""
    letters = sorted(set("".join(TEXTS)))
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(False),
    "llama-3": lambda: byte_level(True),
    "llama-2": llama,
    "metaspace": metaspace,
    "characters": characters,
}


@pytest.fixture(scope="module", params=KINDS)
def speller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speller:
    return saved(KINDS[request.param](), tmp_path_factory.mktemp("tokenizer"))


def saved(tokenizer: Tokenizer, directory: Path) -> Speller:
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return Speller(directory)


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token stands for, by its name in the vocabulary: an oracle that decodes nothing."""
    name = tokenizer.id_to_token(token)
    assert name is not None
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printed]
        table = {chr(byte): byte for byte in printed} | {chr(256 + index): byte for index, byte in enumerate(others)}
        return bytes(table[letter] for letter in name)
    return bytes([FALLBACK.index(name)]) if name in FALLBACK else name.replace("▁", " ").encode()


@pytest.mark.parametrize("text", TEXTS)
def test_each_character_stands_with_the_token_of_its_last_byte(speller: Speller, text: str) -> None:
    ids = speller.tokenizer.encode(text, add_special_tokens=False).ids
    assert "<unk>" not in [speller.tokenizer.id_to_token(token) for token in ids]
    whole = b"".join(bytes_of(speller.tokenizer, token) for token in ids)
    lost = len(whole.decode()) - len(speller.tokenizer.decode(ids))  # the space that the normaliser added in front
    assert lost in (0, 1)
    ends, end = [], 0
    for token in ids:
        end += len(bytes_of(speller.tokenizer, token))
        ends.append(max(len(whole[:end].decode(errors="ignore")) - lost, 0))
    expected = [whole.decode()[lost:][first:last] for first, last in zip([0, *ends], ends, strict=False)]
    assert speller.texts(ids) == expected
    assert "".join(expected) == speller.tokenizer.decode(ids)


def test_texts_of_any_ids_join_to_what_is_decoded(speller: Speller) -> None:
    """Responses that no encoder produces: broken characters, special tokens anywhere, any order."""
    draws = random.Random(0)
    size = speller.tokenizer.get_vocab_size()
    for length in [*range(9), 40, 400]:
        for _ in range(20):
            ids = [draws.randrange(size) for _ in range(length)]
            texts = speller.texts(ids)
            assert len(texts) == length
            assert "".join(texts) == speller.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", ["so 🎉", "is \ufffd a real one"])
def test_what_is_no_character_is_shown_with_the_first_of_its_tokens(speller: Speller, text: str) -> None:
    """A genuine U+FFFD is shown like those that a decoder gives for broken characters."""
    ids = speller.tokenizer.encode(text.partition("🎉")[0], add_special_tokens=False).ids
    ids += speller.tokenizer.encode("🎉", add_special_tokens=False).ids[-4:-1] if "🎉" in text else []
    texts = speller.texts(ids)
    assert "".join(texts) == speller.tokenizer.decode(ids)
    shown = [index for index, letters in enumerate(texts) if "\ufffd" in letters]
    decoded = [index for index in range(len(ids)) if "\ufffd" in speller.tokenizer.decode(ids[: index + 1])]
    assert shown[:1] == decoded[:1]


def test_special_tokens_are_shown_and_are_no_part_of_the_response(speller: Speller) -> None:
    end = speller.tokenizer.token_to_id("<|end|>")
    assert end is not None
    ids = [*speller.tokenizer.encode("is 4", add_special_tokens=False).ids, end]
    texts = speller.texts(ids)
    assert texts[-1].strip() == "<|end|>"
    assert speller.texts_of(ids, "is 4") == texts
    assert speller.texts_of(ids, "was 5") is None


def test_the_cost_of_a_response_is_that_of_its_length(speller: Speller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is known is not decoded again, and no prefix of the response is decoded."""
    sizes: list[int] = []
    decode = Speller._decode

    def counted(self: Speller, ids: list[int]) -> str:
        sizes.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(Speller, "_decode", counted)
    ids = speller.tokenizer.encode("".join(SENTENCES) * 20, add_special_tokens=False).ids
    speller.texts(ids)
    sizes.remove(len(ids))
    assert max(sizes) <= 40
    assert sum(sizes) < 16 * len(ids)
    plain = speller.tokenizer.encode(SENTENCES[0] * 20, add_special_tokens=False).ids
    speller.texts(plain)
    sizes.clear()
    speller.texts(plain)
    assert sum(sizes) < len(plain) + 8


def test_tokens_of_one_character_are_one_piece(tmp_path: Path) -> None:
    directory = make_byte_tokenizer(tmp_path)
    speller = Speller(directory)
    ids = speller.tokenizer.encode("a€b").ids
    assert speller.texts(ids) == ["a", "", "", "€", "b"]
    assert speller.pieces(ids) == [Piece("a", 0, 1), Piece("€", 1, 4), Piece("b", 4, 5)]
    assert speller.pieces([*ids[:3], ids[4]]) == [Piece("a", 0, 1), Piece("\ufffd", 1, 2), Piece("b", 2, 4)]
    assert speller.pieces([]) == []


def test_a_broken_character_takes_nothing_of_what_comes_behind(tmp_path: Path) -> None:
    speller = Speller(make_byte_tokenizer(tmp_path))
    ids = [*speller.tokenizer.encode("🎉").ids[:3], *speller.tokenizer.encode("abc").ids]
    assert speller.texts(ids) == ["\ufffd", "", "", "a", "b", "c"]


def test_a_decoder_that_looks_far_back_loses_nothing(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("aaab", "aaX")])
    assert saved(tokenizer, tmp_path).texts([0, 0, 0, 1]) == ["a", "a", "", "X"]


def test_an_id_that_the_tokenizer_does_not_have_is_a_number(tmp_path: Path) -> None:
    speller = Speller(make_byte_tokenizer(tmp_path))
    ids = speller.tokenizer.encode("ab").ids
    assert speller.texts([ids[0], 999, ids[1]]) == ["a", "<999>", "b"]
    assert speller.texts_of([999], "x") is None
    assert speller.texts_of([ids[0], 999, ids[1]], "ab") == ["a", "<999>", "b"]
    with pytest.raises(InputError, match="has no token 999"):
        speller.known_texts([ids[0], 999])


def test_bytes_that_make_no_character_do_not_hang_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speller = Speller(make_byte_tokenizer(tmp_path))
    broken = next(token for token in range(256) if speller.tokenizer.decode([token]) == "\ufffd")
    sizes: list[int] = []
    decode = Speller._decode

    def counted(self: Speller, ids: list[int]) -> str:
        sizes.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(Speller, "_decode", counted)
    texts = speller.texts([broken] * 500)
    assert "".join(texts) == "\ufffd" * 500
    assert sorted(sizes)[-2] < 50  # except the whole response, once


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
    assert first is not None
    assert spellers.find(tmp_path / "b", record(str(tmp_path / "policy" / "2"), identity)) is first


def test_a_named_tokenizer_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json in it"):
        Spellers(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Spellers(str(tmp_path))
