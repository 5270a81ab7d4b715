"""The run that the pages of docs/ look at: five groups of the arithmetic example's first iteration, with real rollouts.

`golden/docs_rollouts.jsonl` holds what took models to make: responses, and the log-probabilities of their tokens under
the sampler, the PRM and the reference, rounded to five decimals. The stages that need no model run on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from primecli.files import write_json_atomically
from primecli.models.identity import tokenizer_fingerprint
from primecli.models.steps import last_of_steps
from primecli.models.token_text import Speller
from primecli.shards import parquet, schema
from tests.made_runs import make_byte_tokenizer, write_summary

ROLLOUTS = Path(__file__).parent / "golden" / "docs_rollouts.jsonl"
SAMPLES = 4
END_OF_TEXT = 256  # of make_byte_tokenizer
BETA = 0.05
STARTED = "2026-01-02T03:04:05+00:00"

STORY = (
    "A baker sells {} loaves in the morning and twice as many in the afternoon, when the school next door is out. "
    "How many loaves does the baker sell on {} in all?"
)
HELD_OUT = "The sum of two numbers is 30 and their difference is 4. What is the larger of the two numbers?"
PROBLEMS = {
    "train.jsonl": [
        (STORY.format(20, "Monday"), "60"),
        (STORY.format(25, "Monday"), "75"),
        (STORY.format(20, "Friday").upper(), "60"),
        ("Half of a number is 6. What is the number?", "12"),
        ("Half of a number is 6.  What is the number?", "3"),
        ("In the figure, the two sides marked x are equal. Find x.", "4"),
        (f"Here is a riddle. {HELD_OUT} Show your work.", "17"),
        ("Simplify the sum of cot x and tan x.", "\\secx \\cscx"),
    ],
    "heldout.jsonl": [(HELD_OUT, "17")],
}
"""Prompt files with something of each kind for `prepare` to find."""

POLICY, PRM = "d9f13985997672788986f0836b10c7d3", "087900c3611aaf3050b1cc9d07bb269d"
"""Fingerprints of the models that sampled and scored."""


def make_docs_run(root: Path) -> Path:
    """`runs/1` with all stages of an iteration, the tokenizer of `ckpt/sft`, and prompt files. Returns `root`."""
    tokenizer = make_byte_tokenizer(root / "ckpt" / "sft")
    write_json_atomically(tokenizer / "config.json", {"model_type": "qwen2"})
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    write_json_atomically(tokenizer / "tokenizer_config.json", settings)
    rows = [json.loads(line) for line in ROLLOUTS.read_text(encoding="utf-8").splitlines()]
    made = {"policy": POLICY, "tokenizer": tokenizer_fingerprint(tokenizer)}
    command = "primecli generate --model ckpt/sft --prompts train.jsonl --n 4 --batch-prompts 128 --out runs/1/generate"
    config = {"model": "ckpt/sft", "n": SAMPLES, "step": 1, "engine": "hf", "temperature": 1.0}
    _write(root, _sampled(rows, tokenizer), "generate", _record("generate", command, config, made), [])
    _primecli(root, "verify", "runs/1/generate")
    _primecli(root, "filter", "--accuracy", "0.2", "0.8", "runs/1/verify")
    kept = root / "runs" / "1" / "filter" / parquet.shard_name(0, 1)
    command = "primecli score-prm --prm ckpt/prm/1 --ref ckpt/sft"
    config = {"beta": BETA, "ref": "model", "prm": "ckpt/prm/1", "ref_model": "ckpt/sft"}
    record = _record("score-prm", command, config, {"prm": PRM, "ref": POLICY})
    _write(root, _scored(pq.ParquetFile(kept).read(), rows), "score-prm", record, parquet.read_footer(kept).provenance)
    _primecli(root, "compute-advantages", "runs/1/score-prm")
    write_solutions(root, rows)
    for name, problems in PROBLEMS.items():
        rows = [{"problem": problem, "answer": answer} for problem, answer in problems]
        (root / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return root


def write_solutions(root: Path, rows: list[dict[str, Any]]) -> None:
    """`solutions.jsonl`: the responses as step-labelled solutions, in ProcessBench's layout. And `runs/bench`: those
    that were scored, with what `import` would have said of their steps."""
    text = "".join(json.dumps(_solution(row["prompt"], row["response"], row["ground_truth"])) + "\n" for row in rows)
    (root / "solutions.jsonl").write_text(text, encoding="utf-8")
    scored = root / "runs" / "1" / "score-prm" / parquet.shard_name(0, 1)
    table, chain = pq.ParquetFile(scored).read(), parquet.read_footer(scored).provenance
    speller = Speller(root / "ckpt" / "sft")
    ends, labels = [], []
    for prompt, response, ids in zip(
        *(table[name].to_pylist() for name in (schema.PROMPT, schema.RESPONSE, schema.RESPONSE_IDS)), strict=True
    ):
        ends.append(np.flatnonzero(last_of_steps(speller.texts(ids), "\n")).tolist())
        labels.append(_first_wrong(prompt, response))
    for name, values in ((schema.STEP_ENDS, ends), (schema.FIRST_WRONG_STEP, labels)):
        field = schema.BY_NAME[name].field()
        table = table.append_column(field, pa.array(values, type=field.type))
    source = pa.array(["short"] * (table.num_rows // 2) + ["long"] * (table.num_rows - table.num_rows // 2))
    table = table.set_column(table.column_names.index(schema.DATA_SOURCE), schema.DATA_SOURCE, source)
    _write(root, table, "score-prm", dict(chain[-1]), chain[:-1], run="bench")


def _solution(prompt: str, response: str, truth: str) -> dict[str, Any]:
    *steps, answer = response.split("\n")
    return {
        "problem": prompt,
        "steps": [*steps, answer],
        "label": _first_wrong(prompt, response),
        "final_answer_correct": answer == f"\\boxed{{{truth}}}",
        "answer": truth,
    }


def _first_wrong(prompt: str, response: str) -> int:
    """The index of the first line that is not what the chain says, -1 if there is none."""
    first, *operations = prompt.removesuffix(" mod 10:").split()
    value = int(first)
    for index, (line, operation) in enumerate(zip(response.split("\n"), operations, strict=False)):
        operand = int(operation[1:])
        made = {"+": value + operand, "-": value - operand, "*": value * operand}[operation[0]] % 10
        if line != f"{value}{operation}={made}":
            return index
        value = made
    return -1


def _primecli(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "primecli", *arguments, "--quiet"], cwd=root, check=True, capture_output=True)


def _record(stage: str, command: str, config: dict[str, Any], models: dict[str, str]) -> dict[str, Any]:
    made = {"stage": stage, "version": "0.1.0", "command": command, "config": config, "inputs": [], "models": models}
    return {**made, "seed": 0, "fingerprint": "0" * 32, "started": STARTED, "seconds": 0.5}


def _write(root: Path, table: pa.Table, stage: str, record: dict[str, Any], chain: Any, run: str = "1") -> None:
    directory = root / "runs" / run / stage
    directory.mkdir(parents=True)
    path = directory / parquet.shard_name(0, 1)
    parquet.write_shard(path, table, fingerprint="0" * 32, recipe={}, counts={}, provenance=[*chain, record])
    groups = len(set(table[schema.GROUP_ID].to_pylist()))
    write_summary(directory, stage, rows=table.num_rows, groups=groups, config=record["config"])


def _sampled(rows: list[dict[str, Any]], directory: Path) -> pa.Table:
    """The rollouts as `generate` writes them. directory: of the tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    samples: Counter[str] = Counter()
    columns: dict[str, list[Any]] = {name: [] for name in schema.made_by("generate")}
    for row in rows:
        group = row["group_id"]
        values = {
            **row,
            schema.PROMPT_ID: group.partition("@")[0],
            schema.GROUP_SIZE: SAMPLES,
            schema.SAMPLE_INDEX: samples[group],
            schema.DATA_SOURCE: "arithmetic",
            schema.ABILITY: "math",
            schema.PROMPT_IDS: tokenizer.encode(row["prompt"]).ids,
            schema.RESPONSE_IDS: [*tokenizer.encode(row["response"]).ids, END_OF_TEXT],
            schema.TEMPERATURE: 1.0,
            schema.TOP_P: 1.0,
            schema.TOP_K: 0,
            schema.FINISH_REASON: "stop",
            schema.POLICY_FINGERPRINT: POLICY,
        }
        samples[group] += 1
        for name, column in columns.items():
            column.append(values[name])
    return pa.table(columns, schema=schema.arrow_schema(columns))


def _scored(table: pa.Table, rows: list[dict[str, Any]]) -> pa.Table:
    """The rows that `filter` kept, with what `score-prm` adds."""
    kept = set(table[schema.GROUP_ID].to_pylist())
    scores = [(row["prm_logprobs"], row["ref_logprobs"]) for row in rows if row["group_id"] in kept]
    columns = {
        schema.PRM_LOGPROBS: [prm for prm, _ in scores],
        schema.REF_LOGPROBS: [ref for _, ref in scores],
        schema.PROCESS_REWARDS: [
            [BETA * (own - other) for own, other in zip(prm, ref, strict=True)] for prm, ref in scores
        ],
    }
    for name, values in columns.items():
        field = schema.BY_NAME[name].field()
        table = table.append_column(field, pa.array(values, type=field.type))
    return table
