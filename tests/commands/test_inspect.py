from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from tokenizers import pre_tokenizers

from primecli import cli
from primecli.shards import schema
from tests.builders import rollout, rollouts, write_shards
from tests.conftest import check_golden, read_rows

TEXT = "1+1=2\n2+2=5\nso 5"
GOLDEN = Path(__file__).parents[1] / "golden" / "inspect.txt"


def shards(directory: Path) -> Path:
    """One group: a right response, and a wrong one whose second step is to blame; one token per byte."""
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


def test_drawing_without_colours(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "a")
    out = look(capfd, "a", "--verdict", "wrong", "--tokenizer", tiny)
    assert "\x1b" not in out
    check_golden(GOLDEN, "\n".join(line.rstrip() for line in out.splitlines()) + "\n")


def test_drawing_with_colours(tiny: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    directory = shards(tmp_path / "a")
    words = [directory, "--row", 1, "--tokenizer", tiny]
    out = look(capfd, *words, "--theme", "dark")
    assert "48;2;255;138;48m5" in out  # the wrong result, on the strongest orange
    assert "≡" not in out
    assert "48;2;214;90;10m5" in look(capfd, *words, "--theme", "light")
    monkeypatch.setenv("COLORFGBG", "0;15")
    assert "48;2;214;90;10m5" in look(capfd, *words)
    monkeypatch.delenv("COLORTERM")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[37;41m5" in look(capfd, *words)  # white on red, from the sixteen colours
    for options in (["--no-color"], []):
        out = look(capfd, *words, *options)
        assert ("≡" in out, "41m" in out) == (bool(options), not options)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "≡" in look(capfd, *words)


def columns_of(line: str, width: int = 100) -> tuple[str, str]:
    """The two halves of a line of --side-by-side."""
    half = (width - 3) // 2
    return line[:half].rstrip(), line[half + 3 :].rstrip()


def test_side_by_side_has_one_scale(tiny: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = look(capfd, shards(tmp_path / "a"), "--side-by-side", "--tokenizer", tiny).splitlines()
    step = next(number for number, line in enumerate(lines) if "2+2=" in line)
    right, wrong = columns_of(lines[step])
    assert right.split() == ["▲", "2", "+0.500", "2+2=4"]
    assert wrong.split() == ["▼", "2", "-1.000", "2+2=5"]
    right, wrong = columns_of(lines[step + 1])
    assert (right.strip(), wrong.strip()) == ("*", "≡")  # 0.5 of a scale that ends at 1
    assert right.index("*") == columns_of(lines[step])[0].index("=4") + 1
    heads = columns_of(next(line for line in lines if "CORRECT" in line))
    assert [head.split()[0] for head in heads] == ["CORRECT", "WRONG"]
    assert sum("3+4=" in line for line in lines) == 1  # the prompt that they share


def test_a_given_scale(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = look(capfd, shards(tmp_path / "a"), "--row", 1, "--tokenizer", tiny, "--scale", 10)
    assert "from 1.000, 3.500, 7.000" in out
    assert "≡" not in out.partition("process rewards of")[0]


@pytest.mark.parametrize(
    ("rewards", "words"),
    [([0.0, 0.0], "of a token: all are 0"), ([2e-9, 0.0], "+2.00e-09"), ([1234.5, -1.0], "+1234.500")],
)
def test_values_of_any_size(
    rewards: list[float], words: str, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    columns = {schema.RESPONSE_IDS: [65, 66], schema.ROLLOUT_LOGPROBS: [-1.0] * 2, schema.PROCESS_REWARDS: rewards}
    directory = write_shards(tmp_path / "a", [rollout(0, 0, 1, **columns)])
    assert words in look(capfd, directory, "--tokenizer", tiny)


def test_a_program_and_a_long_prompt(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    columns = {
        schema.PROMPT: "\n".join(f"line {number}" for number in range(40)),
        schema.VERDICT: "error",
        schema.OUTCOME_REWARD: None,
        schema.TESTS_PASSED: 3,
        schema.TESTS_TOTAL: 7,
        schema.FIRST_FAILURE: "input 5:\nexpected 7",
        schema.VERIFIER_DETAIL: "x" * 500,
        schema.PROCESS_REWARDS: [0.1, 0.2],
    }
    out = look(capfd, write_shards(tmp_path / "a", [rollout(0, 0, 1, **columns)]), "--tokenizer", tiny)
    for words in (
        "outcome reward none",
        "tests passed 3 of 7",
        "first failure input 5: expected 7",
        "xxx…",
        "│ line 39",
    ):
        assert words in out
    assert "line 28" not in out
    assert "29 more lines" in out


def test_json(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json.loads(look(capfd, shards(tmp_path / "a"), "--json", "--row", 1, "--tokenizer", tiny))
    assert "".join(token["text"] for token in found["tokens"]) == TEXT
    assert [step["text"] for step in found["steps"]] == ["1+1=2\n", "2+2=5\n", "so 5"]
    assert [step["sum"] for step in found["steps"]] == pytest.approx([0.2, -1.0, 0.0])
    assert (found["verdict"], found["row"]) == ("wrong", 1)


def test_without_a_tokenizer_tokens_are_shown_as_ids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = shards(tmp_path / "a")
    capfd.readouterr()
    assert cli.run(["inspect", str(directory)]) == 0
    out, err = capfd.readouterr()
    assert "the tokenizer that sampled was not found" in err
    assert "<16>" in out
    assert TEXT.replace("5", "4") in out  # as it was stored


def test_the_tokenizer_is_found_by_the_provenance(
    tiny: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any directory, though the model was named by a relative path, and only while it is unchanged."""
    home = tmp_path / "home"
    shutil.copytree(tiny, home / "ckpt" / "sft")
    (home / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    monkeypatch.chdir(home)
    words = "generate --model ckpt/sft --prompts prompts.jsonl --n 1 --max-tokens 4 --out runs/1/generate --quiet"
    assert cli.run(words.split()) == 0
    monkeypatch.chdir(tmp_path)

    def spelled() -> bool:
        out = look(capfd, "home/runs/1/generate", "--color", "rollout-logprobs", "--json")
        return bool(json.loads(out)["spelled"])

    assert spelled()
    config = home / "ckpt" / "sft" / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    assert not spelled()


def test_escape_sequences_do_not_reach_the_terminal(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e[bold]"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = dict(zip(range(256), _byte_letters(), strict=True))
    ids = [alphabet.index(letters[byte]) for byte in evil.encode()]
    columns = {
        schema.RESPONSE_IDS: ids,
        schema.ROLLOUT_LOGPROBS: [-1.0] * len(ids),
        schema.PROCESS_REWARDS: [0.1] * len(ids),
        schema.EXTRACTED_ANSWER: evil,
    }
    text = dict.fromkeys((schema.PROMPT, schema.RESPONSE, schema.GROUP_ID, schema.DATA_SOURCE), evil)
    directory = write_shards(tmp_path / "a", [rollout(0, 0, 1, **columns, **text)])
    for options in ([], ["--json"], ["--tokenizer", tiny], ["--tokenizer", tiny, "--json"]):
        out = look(capfd, directory, *options)
        assert not set(out) & set("\x1b\x07\x9b\u202e")
        if "--json" in options:
            assert json.loads(out)["extracted_answer"] == evil
        else:
            assert "␛]0;title␇␛[2J�31m�[bold]" in "".join(out.split())


def _byte_letters() -> list[str]:
    """The letters that GPT-2 and other byte-level tokenizers write for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def test_sampled_with_truncation(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "a", [rollout(0, 0, 1, **{schema.TOP_P: 0.5})])
    capfd.readouterr()
    words = ["inspect", str(directory), "--color", "ratio", "--model", str(tiny), "--tokenizer", str(tiny)]
    assert cli.run(words) == 0
    assert "sampled with top_p 0.5: rollout_logprobs are of another distribution" in capfd.readouterr().err


def test_a_model_against_the_sampler(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = shards(tmp_path / "a")
    for color in ("ratio", "logprob-gap"):
        options = ["--json", "--color", color, "--model", tiny, "--tokenizer", tiny]
        found = json.loads(look(capfd, directory, *options))
        values = [token["value"] for token in found["tokens"]]
        expected = logprobs(tiny, directory) + 1.0  # the sampler's are -1
        assert values == pytest.approx(expected if color == "ratio" else abs(expected), abs=1e-5)


def logprobs(model: Path, directory: Path) -> np.ndarray:
    """(T,) of the first rollout, by transformers itself in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    row = read_rows(directory)[0]
    ids = torch.tensor([row[schema.PROMPT_IDS] + row[schema.RESPONSE_IDS]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)(ids).logits[0, :-1]
    found = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return np.asarray(found[len(row[schema.PROMPT_IDS]) - 1 :].numpy())


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--color", "ratio"], 2, "name it with --model"),
        (["--color", "advantages"], 3, "lacks the column advantages (made by `primecli compute-advantages`)"),
        (["--row", "7"], 3, "no rollout matches"),
        (["--verdict", "timeout"], 3, "no rollout matches"),
        (["--side-by-side", "--verdict", "wrong"], 3, "no group has both a right and a wrong sample"),
        (["--tokenizer", "nowhere"], 3, "nowhere: no tokenizer.json in it"),
        (["--step-separator", ""], 2, "give the text between two steps"),
        (["--scale", "nan"], 2, "nan is not a finite number"),
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


def test_the_first_screen_waits_for_no_large_import(tiny: Path, tmp_path: Path) -> None:
    from tests.test_cli import imported

    directory = shards(tmp_path / "a")
    for words in (["inspect", str(directory), "--tokenizer", str(tiny)], ["stats", str(directory)]):
        assert not imported(*words) & {"torch", "transformers", "huggingface_hub"}


def test_a_reader_that_closes_the_pipe(tiny: Path, tmp_path: Path) -> None:
    from tests.conftest import shell

    shards(tmp_path / "a")
    result = shell(f"primecli inspect a --limit 2 --tokenizer {tiny} | head -1", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("column", [schema.GROUP_ID, schema.DATA_SOURCE, schema.VERDICT, schema.GROUND_TRUTH])
def test_a_text_of_a_megabyte_is_cut_and_takes_no_longer_than_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], column: str
) -> None:
    rows = [{**rollout(0, 0, 1), schema.PROCESS_REWARDS: [0.5, -0.5], column: "ab c" * 250_000}]
    start = time.process_time()
    out = look(capfd, write_shards(tmp_path, rows))
    assert time.process_time() - start < 3  # it was a minute, when each line was cut off a copy of the rest
    assert len(out) < 3000


def test_a_long_path_is_folded_between_cells(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = tmp_path / ("共有" * 20) / "b"
    out = look(capfd, write_shards(path, [{**rollout(0, 0, 1), schema.PROCESS_REWARDS: [0.5, -0.5]}]))
    lines = out.split("\n\n")[0].splitlines()
    assert "".join(line.strip() for line in lines).startswith(str(path))
    assert all(cell_len(line) <= 40 for line in lines)


def test_without_process_rewards_it_shows_what_is_there(tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "verify", rollouts(1, 2))
    result = primecli("inspect", directory)
    assert "no process rewards yet: tokens are coloured by rollout-logprobs" in result.err
    assert any("logprob" in str(line) for line in result.paths)
    refused = primecli("inspect", directory, "--color", "process-rewards", check=False)
    assert (refused.code, "lacks the column process_rewards" in refused.line()) == (3, True)
