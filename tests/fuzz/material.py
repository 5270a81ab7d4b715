"""A small run made by the stages themselves, and a command line for each stage of its second iteration.

Paths are relative to the run's directory, which is small enough to be copied for every case.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from primecli.models.identity import model_fingerprint
from primecli.setup.tiny_model import make_model
from tests.builders import rollouts, write_shards
from tests.fuzz import children

LIMIT = 120.0  # seconds for a stage that makes the material
CPU = ("--device", "cpu", "--micro-batch-tokens", "512")
UPDATE = (*CPU, "--mini-batch", "4")

POLICY, PRM, CRITIC, REF = "policy/1", "prm/1", "critic/1", "model"

STAGES: dict[str, tuple[str, ...]] = {
    "generate": (
        "generate",
        *("--model", POLICY, "--prompts", "prompts.jsonl", "--out", "1/generate", "--device", "cpu"),
        *("--n", "2", "--max-tokens", "4", "--batch-prompts", "4", "--prompts-per-shard", "2"),
    ),
    "verify": ("verify", "1/generate", "--workers", "1", "--timeout", "5"),
    "filter": ("filter", "1/verify", "--accuracy", "0", "1", "--allow-truncated"),
    "update-prm": ("update-prm", "1/filter", "--prm", PRM, "--ref", REF, "--checkpoint", "prm/2", *UPDATE),
    "score-prm": ("score-prm", "1/filter", "--prm", PRM, "--ref", REF, *CPU),
    "score-values": ("score-values", "1/score-prm", "--critic", CRITIC, *CPU),
    "compute-advantages": ("compute-advantages", "1/score-values"),
    "update-critic": ("update-critic", "1/compute-advantages", "--critic", CRITIC, "--checkpoint", "critic/2", *UPDATE),
    "update-policy": ("update-policy", "1/compute-advantages", "--policy", POLICY, "--checkpoint", "policy/2", *UPDATE),
}
"""A whole iteration of PPO with process rewards, in its order."""

QUESTIONS = ("1+1=", "2+5=", "1+2+3=", "7-3=", "What is 2 times 3?")


def rows() -> list[dict[str, object]]:
    """Prompts of several kinds: text, messages, nested answers, tool fields."""
    made: list[dict[str, object]] = []
    for number, question in enumerate(QUESTIONS):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        made.append(
            {
                "prompt": messages,
                "answer": str(number),
                "reward_model": {"ground_truth": str(number), "style": "rule"},
                "data_source": "made",
                "ability": "math",
                "extra_info": {"index": number, "split": "train"},
            }
        )
    return made


def write_prompts(directory: Path) -> None:
    """The same prompts as JSON lines, packed, as Parquet, and as plain text."""
    lines = "".join(json.dumps(row) + "\n" for row in rows()).encode()
    (directory / "prompts.jsonl").write_bytes(lines)
    (directory / "prompts.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist(rows()), directory / "prompts.parquet")
    texts = [{"prompt": question, "answer": ["1"]} for question in QUESTIONS]
    (directory / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (directory / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled_rows()))
    messages = [[{"role": "user", "content": text}, {"role": "assistant", "content": "7"}] for text in QUESTIONS]
    table = pa.table({"conversation": messages, "label": [number % 2 for number in range(len(QUESTIONS))]})
    pq.write_table(table, directory / "labelled.parquet")


def labelled_rows() -> list[dict[str, object]]:
    """Labelled responses in several layouts: texts, pairs, steps with the first wrong one, steps with their labels."""
    return [
        {"prompt": "1+1=", "response": "2", "score": 1, "answer": "2"},
        {"prompt": "1+2=", "chosen": "3", "rejected": "4"},
        {"problem": "2+2=", "steps": ["two", "and two", "4"], "label": 1, "final_answer_correct": True},
        {"problem": "2+2=", "steps": [{"text": "two", "rating": 1}, {"text": "5", "rating": -1}]},
        {"prompt": "3+3=", "responses": ["6", "7"], "rewards": [1, 0]},
    ]


def make(directory: Path) -> Path:
    """Makes the run: a model, one checkpoint of each kind, and a whole iteration with them. Returns the directory."""
    directory.mkdir(parents=True)
    write_prompts(directory)
    (directory / "primecli.toml").write_text(TOML)
    _in_child(directory, make_models)
    write_shards(directory / "0", first_rollouts(directory / "model"), per_shard=4)
    for name, option in (("prm", "--prm"), ("critic", "--critic"), ("policy", "--policy")):
        command = [f"update-{name}", "0", option, "model", "--checkpoint", f"{name}/1", *UPDATE]
        if name == "prm":
            command += ["--ref", "model"]
        if name == "policy":
            command += ["--old-logprobs", "rollout"]
        _must(command, directory)
    _split_weights(directory)
    return directory


def make_iteration(directory: Path) -> None:
    """The shards of one iteration, its evaluation, and the summaries of a second update."""
    for stage in STAGES.values():
        _must(stage, directory)
    _must(["evaluate", "1/verify"], directory)
    _must(["import", "labelled.jsonl", "--model", REF, "--out", "offline/import"], directory)
    _must(["score-prm", "offline/import", "--prm", PRM, "--ref", REF, *CPU], directory)


def first_rollouts(model: Path) -> list[dict[str, object]]:
    """Rollouts with returns and advantages, as another tool would have made them."""
    made = rollouts(2, 4, policy_fingerprint=model_fingerprint(model))
    for row in made:
        length = len(row["response_ids"])
        row |= {name: [0.1] * length for name in ("advantages", "returns", "values", "process_rewards")}
    return made


def make_models(directory: Path) -> None:
    """The model that all start from."""
    make_model(directory / "model", dtype="bfloat16")  # so that checkpoints have float32 parameters of their own


def _split_weights(directory: Path) -> None:
    """The same model in two files with an index, beside it."""
    from safetensors.torch import load_file, save_file

    split = directory / "split"
    shutil.copytree(directory / "model", split)
    weights = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    names = sorted(weights)
    placed = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in sorted(set(placed.values())):
        part = {name: weights[name] for name in names if placed[name] == file}
        save_file(part, split / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * 4 for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (split / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _in_child(directory: Path, work: object) -> None:
    """Makes the models in a child: whatever computes in this process may start threads, which no fork survives."""
    ended = children.run(["--version"], directory, limit=LIMIT, before=lambda: work(directory))  # type: ignore[operator]
    assert ended.code == 0, ended.err


def _must(command: list[str] | tuple[str, ...], directory: Path) -> None:
    ended = children.run(command, directory, limit=LIMIT)
    assert ended.code == 0, f"{' '.join(command)}: {ended.code} {ended.err}"


TOML = """\
seed = 1
device = "cpu"

[generate]
n = 2
max-tokens = 4
temperature = 0.5

[verify]
workers = 1

[filter]
accuracy = [0.0, 1.0]

[update-prm]
mini-batch = 4

[score-prm]
micro-batch-tokens = 512

[compute-advantages]
estimator = "rloo"

[update-policy]
lr = 5e-7
mini-batch = 4

[update-critic]
mini-batch = 4

[report]
max-rollouts = 4

[stats]
[watch]
interval = 1.0
"""
