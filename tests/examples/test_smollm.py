"""The SmolLM2 example: its prompts and an iteration on the model, where PRIMECLI_SMOLLM names its checkpoint."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "smollm"
CHECKPOINT = os.environ.get("PRIMECLI_SMOLLM")


def make_prompts(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "make_prompts.py"), *options, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_sum_is_asked_twice_and_its_answer_is_right(tmp_path: Path) -> None:
    assert make_prompts(tmp_path, "addition").stderr == ""
    parts = [rows(tmp_path / name) for name in ("train.jsonl", "heldout.jsonl")]
    assert [len(part) for part in parts] == [1024, 160]
    both = [row for part in parts for row in part]
    questions = [row["prompt"][-1]["content"] for row in both]
    examples = both[0]["prompt"][1:-1:2]
    assert len({*questions, *(example["content"] for example in examples)}) == 1024 + 160 + 2
    assert all(
        eval(question.removesuffix("=")) == int(row["answer"]) for question, row in zip(questions, both, strict=True)
    )
    assert [message["role"] for message in both[0]["prompt"]] == ["system", *["user", "assistant"] * 2, "user"]


def test_another_task_needs_its_package(tmp_path: Path) -> None:
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError")
    command = [sys.executable, str(EXAMPLE / "make_prompts.py"), "letter_counting", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (1, "reasoning-gym is not installed: pip install reasoning-gym\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(CHECKPOINT is None, reason="PRIMECLI_SMOLLM does not name the checkpoint that checkpoint.py makes")
def test_an_iteration_on_the_model(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(Path(str(CHECKPOINT)).resolve())
    sizes = ["ITERATIONS=1", "BATCH=8", "SAMPLES=4", "EVAL_SAMPLES=1"]
    command = ["make", "-C", str(EXAMPLE), f"PYTHON={sys.executable}", f"WORK={tmp_path}", *sizes]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "addition" / "run"
    accuracies = [float(row["avg@1"]) for row in csv.DictReader((run / "evaluations.csv").read_text().splitlines())]
    assert len(accuracies) == 2
    assert all(0.1 < accuracy < 0.5 for accuracy in accuracies)
    summary = json.loads((run / "policy" / "1" / "_summary.json").read_text())
    assert summary["metrics"]["logprob_gap_max"] < 1e-3
    assert (run / "report.html").stat().st_size > 0
