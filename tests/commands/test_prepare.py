from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli.shards.parquet import read_footer
from tests.builders import rollout, write_shards
from tests.conftest import DATA, read_rows

PLAIN = [{"prompt": f"What is {number} + {number * 7}?", "answer": str(number * 8)} for number in range(2, 6)]


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; PRIMECLI_DATA names another directory")
    return path


@pytest.fixture
def prepared(primecli: Any, tmp_path: Path) -> Any:
    """Prepares rows, or files, and returns the rows that come out."""

    def run(rows: Sequence[dict[str, Any]], *arguments: object) -> list[dict[str, Any]]:
        out = tmp_path / "out.parquet"
        primecli("prepare", lines(tmp_path / "in.jsonl", rows), "--out", out, "--force", *arguments)
        return read_rows(out)

    return run


def reasons(rows: Sequence[dict[str, Any]]) -> list[str | None]:
    return [row["reason"] for row in rows]


def test_the_layout_of_verl_from_several_layouts(tmp_path: Path, primecli: Any) -> None:
    verl = {
        "data_source": "numina",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Half of 6?"}],
        "ability": "math",
        "reward_model": {"ground_truth": "3", "style": "model"},
        "extra_info": {"index": 7, "split": "train"},
        "id": "a",
    }
    pq.write_table(pa.Table.from_pylist([verl]), tmp_path / "numina.parquet")
    plain = lines(tmp_path / "gsm8k.jsonl", [{"question": "How many?", "answer": "9 + 9 = 18\n#### 18"}])
    code = lines(tmp_path / "mbpp.jsonl", [{"task_id": 2, "prompt": "Write f.", "test_list": ["assert f(1) == 1"]}])
    out = tmp_path / "out.parquet"
    result = primecli("prepare", tmp_path / "numina.parquet", plain, code, "--out", out)
    assert result.paths == [out]
    first, second, third = read_rows(out)
    assert first == {
        "prompt_id": first["prompt_id"],
        "data_source": "numina",
        "prompt": verl["prompt"],
        "ability": "math",
        "reward_model": {"ground_truth": "3", "style": "model"},
        "extra_info": {"index": 7, "split": "train"},
        "source_file": "numina.parquet",
        "source_row": 1,
        **dict.fromkeys(("duplicate_of", "contaminated_by", "contamination_share", "contamination_words")),
        "pass_rate": None,
        "reason": None,
    }
    assert second["prompt"] == [{"role": "user", "content": "How many?"}]
    assert (second["data_source"], second["ability"], second["extra_info"]) == ("gsm8k", "math", None)
    assert (third["prompt_id"], third["ability"], third["reason"]) == ("2", "code", None)
    assert json.loads(third["reward_model"]["ground_truth"]) == {"asserts": ["assert f(1) == 1"]}
    assert "numina.parquet: 1 row, prompts in the column prompt" in result.err
    assert "columns left out: id" in result.err


def test_generate_reads_it_and_pass_rates_come_back(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    out, train = tmp_path / "prompts.parquet", tmp_path / "train.parquet"
    rows = [*PLAIN, PLAIN[0]]
    primecli("prepare", lines(tmp_path / "in.jsonl", rows), "--out", out)
    ids = [row["prompt_id"] for row in read_rows(out)]
    sampled = primecli(
        "generate", "--model", tiny, "--prompts", out, "--n", 2, "--max-tokens", 4, "--out", tmp_path / "g"
    )
    primecli("verify", *sampled.paths, "--out", tmp_path / "v")
    graded = read_rows(tmp_path / "v")
    assert [row["prompt_id"] for row in graded[::2]] == ids  # marked rows too
    primecli("prepare", out, "--pass-rate", tmp_path / "v", "--out", train)
    means = dict.fromkeys(ids, 0.0)
    for row in graded:
        means[row["prompt_id"]] += row["outcome_reward"] / sum(row["prompt_id"] == one["prompt_id"] for one in graded)
    assert {row["prompt_id"]: row["pass_rate"] for row in read_rows(train)} == pytest.approx(means)


def test_prompts_are_kept_by_their_pass_rate(tmp_path: Path, primecli: Any) -> None:
    rows = [{**row, "prompt_id": f"p{number}"} for number, row in enumerate(PLAIN)]
    right = {0: 0, 1: 2, 2: 4}
    graded = [
        rollout(group, index, 4, outcome_reward=float(index < number))
        for group, number in right.items()
        for index in range(4)
    ]
    graded[4]["outcome_reward"] = None  # ungraded, so it does not count: 1 of 3
    shards = write_shards(tmp_path / "graded", graded)
    command = ["prepare", lines(tmp_path / "in.jsonl", rows), "--pass-rate", shards, "--keep", 0.2, 0.8]
    result = primecli(*command, "--out", tmp_path / "out.parquet")
    made = read_rows(tmp_path / "out.parquet")
    assert [row["pass_rate"] for row in made] == [0.0, pytest.approx(1 / 3), 1.0, None]
    assert reasons(made) == ["too_hard", None, "too_easy", "not_sampled"]
    assert "pass rates of 3 prompts, 0.444 on average; 1 responses are ungraded" in result.err
    # the rates stay in the file: other bounds need no shards
    again = tmp_path / "again.parquet"
    primecli("prepare", tmp_path / "out.parquet", "--keep", 0.5, 1, "--drop", "--out", again)
    assert [row["prompt_id"] for row in read_rows(again)] == ["p2"]


def test_duplicates_conflicts_and_other_numbers(prepared: Any) -> None:
    story = (
        "Tom buys 12 pencils for $3 each and gives some of them to his sister, who lives in another town and has been "
        "ill since spring. How much money did Tom spend on all of the pencils together?"
    )
    near = story.replace("spring", "summer")
    rows = [
        {"prompt": story, "answer": "36"},
        {"prompt": story.upper(), "answer": "36.0"},
        {"prompt": near, "answer": "36"},
        {"prompt": story.replace("12", "15"), "answer": "45"},
        {"prompt": f"  {story}\n", "answer": "40"},
    ]
    made = prepared(rows)
    first = made[0]["prompt_id"]
    assert [row["duplicate_of"] for row in made] == [None, first, first, None, first]
    assert reasons(made) == ["conflict", "duplicate", "duplicate", None, "duplicate, conflict"]
    assert reasons(prepared(rows, "--near", 1)) == ["conflict", "duplicate", None, None, "duplicate, conflict"]
    assert [row["source_row"] for row in prepared(rows, "--drop")] == [4]


def test_the_copy_that_has_an_answer_is_kept(prepared: Any) -> None:
    made = prepared([{"prompt": "How many?", "answer": None}, {"prompt": "how  many?", "answer": "3"}])
    assert reasons(made) == ["no_answer, duplicate", None]


def test_planted_near_duplicates_are_found_among_real_prompts(prepared: Any) -> None:
    with data("gsm8k_test.jsonl").open() as file:
        problems = [json.loads(line) for line in file]
    draws = random.Random(0)
    words = [word for row in problems for word in row["question"].split()]
    rows = [{"prompt": row["question"], "answer": row["answer"].rpartition("#### ")[2]} for row in problems]
    planted = []
    for row in [row for row in rows if len(row["prompt"].split()) >= 60][:100]:
        text = row["prompt"].split()
        for place in draws.sample(range(len(text)), round(0.05 * len(text))):
            text[place] = draws.choice(words)
        planted.append({"prompt": " ".join(text), "answer": row["answer"]})
    made = prepared([*rows, *planted])
    ids = [row["prompt_id"] for row in made]
    found = [row["duplicate_of"] for row in made]
    assert sum(one is not None for one in found[len(rows) :]) >= 95
    assert all(one is None or one in ids[: len(rows)] for one in found)
    assert found[: len(rows)] == [None] * len(rows)  # 1,319 unrelated problems


@pytest.mark.parametrize(
    "plant",
    [
        lambda problem, question: problem,
        lambda problem, question: problem.swapcase().replace(" ", "\n  "),
        lambda problem, question: f"{question} And then: {problem} Explain that to a friend.",
    ],
    ids=["verbatim", "case and white space", "inside longer text"],
)
def test_planted_benchmarks_are_found_among_real_prompts(prepared: Any, plant: Any) -> None:
    with data("gsm8k_train_400.jsonl").open() as file:
        questions = [json.loads(line)["question"] for line in file]
    with data("math500.jsonl").open() as file:
        problems = [json.loads(line)["problem"] for line in file]
    problems += [row["prompt"][0]["content"] for row in read_rows(data("aime25.parquet"))]
    texts = [*questions, *(plant(problem, questions[number % 400]) for number, problem in enumerate(problems))]
    rows = [{"prompt": text, "answer": "1"} for text in texts]
    benchmarks = ["--contamination", DATA / "math500.jsonl", "--contamination", DATA / "aime25.parquet"]
    made = prepared(rows, *benchmarks, "--near", 1)
    names = [f"math500.jsonl: row {row}" for row in range(1, 501)] + [
        f"aime25.parquet: row {row}" for row in range(1, 31)
    ]
    assert [row["contaminated_by"] for row in made] == [None] * 400 + names
    assert all(row["contamination_share"] > 0.9 for row in made[400:])


def test_marks_of_single_prompts(prepared: Any) -> None:
    rows = [
        {"prompt": " … ", "answer": "1"},
        {"prompt": "word " * 30, "answer": "1"},
        {"prompt": "How many?"},
        {"prompt": "How much?", "answer": r"\cotx"},
        {"prompt": "Which of the following is prime?", "answer": "7"},
        {"prompt": "In the figure, find x.", "answer": "7"},
        {"prompt": "Prove that 2 is even.", "answer": "7"},
        {"prompt": "Write the program in the figure.", "ability": "code", "answer": '{"asserts": ["assert f()"]}'},
        {"prompt": "Write another program.", "ability": "code", "answer": '{"tests": []}'},
        {"prompt": "Who?", "answer": ["a", "b"]},
    ]
    assert reasons(prepared(rows, "--max-words", 29)) == [
        "empty",
        "too_long",
        "no_answer",
        "unreadable_answer",
        "multiple_choice",
        "figure",
        "proof",
        None,
        "unreadable_answer",
        "unreadable_answer",
    ]


def test_rows_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, primecli: Any) -> None:
    rows: list[dict[str, Any]] = [*PLAIN, {"prompt": None, "answer": "1"}]
    result = primecli("prepare", lines(tmp_path / "in.jsonl", rows), "--out", tmp_path / "out.parquet", "--json")
    summary = json.loads("\n".join(map(str, result.paths)))
    assert (summary["prompts"], summary["written"], summary["files"][0]["unreadable"]) == (4, 4, 1)
    assert summary["unreadable"] == [f"{tmp_path / 'in.jsonl'}: row 5: the prompt is null"]
    lines(tmp_path / "none.jsonl", rows[-1:])
    result = primecli("prepare", tmp_path / "none.jsonl", "--out", tmp_path / "none.parquet", check=False)
    assert (result.code, result.line()) == (
        3,
        f"primecli prepare: {tmp_path / 'none.jsonl'}: row 1: the prompt is null (drop the row or fill it in)",
    )
    assert not (tmp_path / "none.parquet").exists()


def test_a_rerun_skips_and_another_run_is_refused(tmp_path: Path, primecli: Any) -> None:
    source, out = lines(tmp_path / "in.jsonl", PLAIN), tmp_path / "out.parquet"
    primecli("prepare", source, "--out", out)
    written = out.read_bytes()
    result = primecli("prepare", source, "--out", out)
    assert "exists already, made from the same input" in result.err
    assert "4 prompts, 0 with a mark" in result.err  # the summary is in the file
    assert (result.paths, out.read_bytes()) == ([out], written)
    result = primecli("prepare", source, "--near", 0.8, "--out", out, check=False)
    assert (result.code, "near was 0.9, is 0.8" in result.line()) == (1, True)
    lines(source, PLAIN[1:])
    result = primecli("prepare", source, "--out", out, check=False)
    assert (result.code, "its input has changed" in result.line()) == (1, True)
    assert out.read_bytes() == written
    primecli("prepare", source, "--out", out, "--force")
    (record,) = read_footer(out).provenance
    assert (record["stage"], record["config"]["near"], len(read_rows(out))) == ("prepare", 0.9, 3)


def test_what_is_no_prepared_file_is_not_overwritten(tmp_path: Path, primecli: Any) -> None:
    source, out = lines(tmp_path / "in.jsonl", PLAIN), tmp_path / "out.parquet"
    for content in (b"PAR1 and no more", b"notes"):
        out.write_bytes(content)
        result = primecli("prepare", source, "--out", out, check=False)
        assert (result.code, "no prompt file that prepare wrote" in result.line()) == (1, True)
        assert out.read_bytes() == content
    pq.write_table(pa.table({"prompt": ["mine"]}), out)
    result = primecli("prepare", source, "--out", out, check=False)
    assert (result.code, "it was not written by primecli" in result.line()) == (1, True)


def test_the_same_id_of_different_problems_becomes_two(tmp_path: Path, primecli: Any) -> None:
    files = [
        lines(tmp_path / f"{name}.jsonl", [{"task_id": 1, "prompt": name, "answer": "1"}]) for name in ("ab", "cd")
    ]
    result = primecli("prepare", *files, "--out", tmp_path / "out.parquet")
    first, second = (row["prompt_id"] for row in read_rows(tmp_path / "out.parquet"))
    assert (first, second[:2]) == ("1", "1-")
    assert "1 prompts had the id of a different one" in result.err


def test_messages_with_tools_are_kept_whole(prepared: Any, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    made = prepared([{"prompt": messages, "answer": "3", "tools": [call]}, *PLAIN])
    assert json.loads(made[0]["prompt"]) == messages
    assert json.loads(made[0]["tools"]) == [call]
    again = prepared(made)
    assert [row["prompt"] for row in again] == [row["prompt"] for row in made]


def test_text_for_a_model_without_a_chat_template(prepared: Any, tmp_path: Path, primecli: Any) -> None:
    assert [row["prompt"] for row in prepared(PLAIN, "--text")] == [row["prompt"] for row in PLAIN]
    several = [{"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "answer": "1"}]
    lines(tmp_path / "in.jsonl", several)
    result = primecli("prepare", tmp_path / "in.jsonl", "--text", "--out", tmp_path / "t.parquet", check=False)
    assert (result.code, "row 1 is not a single message of the user" in result.line()) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--keep", 0.2, 0.8], 2, "--keep needs pass rates"),
        (["--keep", 0.8, 0.2], 2, "the lower bound comes first"),
        (["--answer-regex", "("], 2, "--answer-regex"),
        (["--contamination", "absent.jsonl"], 3, "absent.jsonl: no such file"),
        (["--pass-rate", "absent"], 3, "absent: no such file or directory"),
        (["--ngram", 5, "--contamination", "in.jsonl"], 2, "--ngram 5"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: list[Any], code: int, message: str, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = primecli("prepare", lines(Path("in.jsonl"), PLAIN), "--out", "out.parquet", *arguments, check=False)
    assert (result.code, message in result.line()) == (code, True), result.err
    assert not Path("out.parquet").exists()


def test_shards_of_other_prompts_and_a_benchmark_without_prompts(tmp_path: Path, primecli: Any) -> None:
    source = lines(tmp_path / "in.jsonl", PLAIN)
    shards = write_shards(tmp_path / "graded", [rollout(0, 0, 1)])
    result = primecli("prepare", source, "--pass-rate", shards, "--out", tmp_path / "o.parquet", check=False)
    assert (result.code, "none of the 1 prompts in the shards" in result.line()) == (3, True)
    other = lines(tmp_path / "other.jsonl", [{"words": "a"}])
    result = primecli("prepare", source, "--contamination", other, "--out", tmp_path / "o.parquet", check=False)
    assert (result.code, "no column 'prompt'" in result.line()) == (3, True)
    result = primecli("prepare", source, "--out", source, check=False)
    assert (result.code, "is one of the files to read" in result.line()) == (2, True)
