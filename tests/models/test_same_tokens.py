from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from primecli.models.identity import tokenizer_fingerprint
from primecli.models.same_tokens import TOKEN_IDENTITY, TokenCheck, token_identity
from primecli.shards import parquet
from primecli.shards.columns import with_columns
from primecli.shards.parquet import Shard, read_footer
from tests.builders import rollouts, write_shards


@pytest.fixture
def permuted(tiny: Path, tmp_path: Path) -> Path:
    """The same model, with a tokenizer of which the ids stand for other texts."""
    shutil.copytree(tiny, tmp_path / "permuted")
    path = tmp_path / "permuted" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    texts = [text for text in vocabulary if vocabulary[text] < 256]
    for text, number in zip(texts, [vocabulary[text] for text in texts][::-1], strict=True):
        vocabulary[text] = number
    path.write_text(json.dumps(values))
    return path.parent


def shard(directory: Path, **record: Any) -> Shard:
    """A shard with such a record of `generate`; its responses are the text of their ids for no tokenizer."""
    path = next(write_shards(directory, rollouts(1, 2)).glob("*.parquet"))
    table = parquet.read_table(path)
    chain = [{"stage": "generate", **record}] if record else []
    parquet.write_shard(path, table, fingerprint="f", recipe={}, counts={}, provenance=chain)
    return Shard(path, read_footer(path))


def test_the_identity_is_of_the_texts_of_ids_alone(tiny: Path, permuted: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "other-template")
    (tmp_path / "other-template" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert tokenizer_fingerprint(tmp_path / "other-template") != tokenizer_fingerprint(tiny)
    assert token_identity(tmp_path / "other-template") == token_identity(tiny) != token_identity(permuted)
    (tmp_path / "none").mkdir()
    assert token_identity(tmp_path / "none") is None


def test_another_tokenizer_is_refused_for_whichever_model(tiny: Path, permuted: Path, tmp_path: Path) -> None:
    made = shard(tmp_path / "in", **{TOKEN_IDENTITY: token_identity(tiny)})
    TokenCheck({"prm": tiny}).check(made)
    for role in ("prm", "ref"):
        with pytest.raises(Exception, match=f"made with another tokenizer than that of the {role} {permuted}"):
            TokenCheck({"policy": tiny, role: permuted}).check(made)


def test_shards_from_before_the_identity_are_compared_by_their_text(tiny: Path, permuted: Path, tmp_path: Path) -> None:
    same_files = shard(tmp_path / "a", models={"tokenizer": tokenizer_fingerprint(tiny)})
    TokenCheck({"prm": tiny}).check(same_files)
    with pytest.raises(Exception, match="another tokenizer"):
        TokenCheck({"prm": permuted}).check(same_files)
    spelled = parquet.read_table(same_files.path)
    texts = with_columns(spelled, {"response": ["A", "B"], "response_ids": [[32], [33]]})
    chain = [{"stage": "generate", "models": {"tokenizer": "of another template"}}]
    parquet.write_shard(same_files.path, texts, fingerprint="f", recipe={}, counts={}, provenance=chain)
    again = Shard(same_files.path, read_footer(same_files.path))
    from primecli.models.token_text import Speller

    assert Speller(tiny).texts([32, 33]) == ["A", "B"]
    TokenCheck({"prm": tiny}).check(again)
    with pytest.raises(Exception, match="another tokenizer"):
        TokenCheck({"prm": permuted}).check(again)


def test_nothing_is_known_of_another_tools_shard_or_a_model_without_a_tokenizer(permuted: Path, tmp_path: Path) -> None:
    TokenCheck({"prm": permuted}).check(shard(tmp_path / "a"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (permuted / name).unlink()
    TokenCheck({"prm": permuted}).check(shard(tmp_path / "b", models={"tokenizer": "x"}))
