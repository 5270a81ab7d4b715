from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from primecli import cli, schema
from tests.builders import rollout, write_shards
from tests.conftest import check_golden

TEXT = "1+1=2\n2+2=5\nso 5"
GOLDEN = Path(__file__).parents[1] / "golden" / "inspect.txt"


def shards(directory: Path) -> Path:
    """One group: a right response, and a wrong one whose second step is to blame; a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rows = []
    for index, (text, blame) in enumerate([(TEXT.replace("5", "4"), 0.5), (TEXT, -1.0)]):
        ids = [alphabet.index({"\n": "Ċ", " ": "Ġ"}.get(letter, letter)) for letter in text]
        rewards = [0.0] * len(ids)
        rewards[4], rewards[10] = 0.2, blame
        columns = {
            schema.RESPONSE: text,
            schema.RESPONSE_IDS: ids,
            schema.ROLLOUT_LOGPROBS: [-1.0] * len(ids),
            schema.PROCESS_REWARDS: rewards,
            schema.OUTCOME_REWARD: 1.0 - index,
            schema.VERDICT: ["correct", "wrong"][index],
            schema.EXTRACTED_ANSWER: text[-1],
            schema.GROUND_TRUTH: "4",
        }
        rows.append(rollout(0, index, 2, **columns))
    return write_shards(directory, rows)


def look(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    capfd.readouterr()
    assert cli.run(["inspect", *map(str, arguments)]) == 0
    return capfd.readouterr().out


def test_the_screen_without_colour(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "a")
    out = look(capfd, "a", "--verdict", "wrong", "--tokenizer", tiny)
    assert "\x1b" not in out
    check_golden(GOLDEN, "\n".join(line.rstrip() for line in out.splitlines()) + "\n")


def test_with_colour(tiny: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = look(capfd, shards(tmp_path / "a"), "--row", 1, "--tokenizer", tiny)
    assert "48;2;217;95;14m5" in out  # the wrong result, on the deepest orange
    assert "[---]" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "5[---]" in look(capfd, tmp_path / "a", "--row", 1, "--tokenizer", tiny)


def test_side_by_side_has_one_scale(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = look(capfd, shards(tmp_path / "a"), "--side-by-side", "--tokenizer", tiny)
    assert "2+2=4[++]" in out  # 0.5 of a scale that ends at 1
    assert "2+2=5[---]" in out
    assert out.index("correct") < out.index("wrong")


def test_json(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json.loads(look(capfd, shards(tmp_path / "a"), "--json", "--row", 1, "--tokenizer", tiny))
    assert "".join(token["text"] for token in found["tokens"]) == TEXT
    assert [step["text"] for step in found["steps"]] == ["1+1=2\n", "2+2=5\n", "so 5"]
    assert [step["sum"] for step in found["steps"]] == pytest.approx([0.2, -1.0, 0.0])
    assert (found["verdict"], found["row"]) == ("wrong", 1)


def test_without_a_tokenizer_tokens_are_numbers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = shards(tmp_path / "a")
    capfd.readouterr()
    assert cli.run(["inspect", str(directory)]) == 0
    out, err = capfd.readouterr()
    assert "the tokenizer is not here" in err
    assert "<16>" in out


def test_a_model_against_the_sampler(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = shards(tmp_path / "a")
    for color in ("ratio", "logprob-gap"):
        options = ["--json", "--color", color, "--model", tiny, "--tokenizer", tiny]
        found = json.loads(look(capfd, directory, *options))
        values = [token["value"] for token in found["tokens"]]
        assert max(map(abs, values)) > 0.1
        assert color == "ratio" or min(values) >= 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--color", "ratio"], 2, "name it with --model"),
        (["--color", "advantages"], 3, "lacks the column advantages (made by `primecli compute-advantages`)"),
        (["--row", "7"], 3, "no rollout is like that"),
        (["--verdict", "timeout"], 3, "no rollout is like that"),
        (["--side-by-side", "--verdict", "wrong"], 3, "no group here has a right and a wrong sample"),
        (["--tokenizer", "nowhere"], 3, "nowhere: no tokenizer.json there"),
    ],
)
def test_bad_input(
    options: list[str], code: int, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = shards(tmp_path / "a")
    capfd.readouterr()
    assert cli.run(["inspect", str(directory), *options]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_reader_that_has_seen_enough(tiny: Path, tmp_path: Path) -> None:
    from tests.conftest import shell

    shards(tmp_path / "a")
    result = shell(f"primecli inspect a --limit 2 --tokenizer {tiny} | head -1", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
