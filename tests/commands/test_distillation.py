"""On-policy distillation: a pipeline of stages in which a teacher's log-probabilities are the only reward."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from primecli.shards import schema
from tests.builders import write_shards
from tests.commands.test_reference_updates import case_rows, cut
from tests.conftest import read_rows, summary
from tests.core.reference_2 import CASES_2

FROM_TEACHER = (
    *("--estimator", "reinforce", "--outcome-coef", 0, "--process-gamma", 0, "--process-norm", "none"),
    "--no-whiten",
)
"""What makes the advantages of compute-advantages the process rewards themselves."""


def iterate(primecli: Any, student: Path, teacher: Path, prompts: Path, run: Path, step: int) -> Path:
    """One iteration; returns the next student."""
    target = run / "policy" / str(step)
    primecli(
        *("generate", "--model", student, "--prompts", prompts, "--n", 8, "--max-tokens", 8, "--step", step),
        *("--batch-prompts", 12, "--out", run / str(step) / "generate"),
    )
    primecli("score-prm", "--prm", teacher, "--ref", "rollout", "--beta", 1, run / str(step) / "generate")
    primecli("compute-advantages", *FROM_TEACHER, run / str(step) / "score-prm")
    primecli(
        *("update-policy", "--policy", student, "--checkpoint", target, run / str(step) / "compute-advantages"),
        *("--lr", "3e-3", "--mini-batch", 48),
    )
    return target


def reverse_kl(student: Path, teacher: Path, rows: list[dict[str, Any]]) -> float:
    """KL(student || teacher) over the whole vocabulary, nats, averaged over the states of the rows' response tokens."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (student, teacher)]
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([[*row[schema.PROMPT_IDS], *row[schema.RESPONSE_IDS]]])
        first = len(row[schema.PROMPT_IDS]) - 1
        with torch.no_grad():
            ours, theirs = (torch.log_softmax(model(ids).logits[0, first:-1], -1) for model in models)
        total += float((ours.exp() * (ours - theirs)).sum())
        tokens += len(ours)
    return total / tokens


def test_the_students_reverse_kl_to_the_teacher_falls(
    tiny: Path, other: Path, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    student = tiny
    for step in range(1, 4):
        student = iterate(primecli, student, other, prompts, tmp_path, step)
    before = reverse_kl(tiny, other, read_rows(tmp_path / "1" / "generate"))
    after = reverse_kl(student, other, read_rows(tmp_path / "3" / "generate"))
    assert after < 0.7 * before
    # what score-prm says on the way is minus its estimate from the sampled tokens
    said = [-summary(tmp_path / str(step) / "score-prm")["metrics"]["process_reward_per_token"] for step in (1, 2, 3)]
    assert said[0] > said[1] > said[2] > 0
    assert said[0] == pytest.approx(before, rel=0.35)


def test_the_advantage_is_the_log_ratio_of_teacher_and_student(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    for number, case in enumerate(CASES_2):
        rows, logprobs = case_rows(case, tiny)
        for index, row in enumerate(rows):  # tiny stands for the teacher
            difference = cut(case, "ref_logprobs", index) - cut(case, "old_logprobs", index)
            row[schema.ROLLOUT_LOGPROBS] = (logprobs[index] - difference).tolist()
            row[schema.OUTCOME_REWARD] = None  # nothing has been graded
        directory = write_shards(tmp_path / str(number) / "generate", rows)
        primecli("score-prm", "--prm", tiny, "--ref", "rollout", "--beta", 1, directory)
        primecli("compute-advantages", *FROM_TEACHER, tmp_path / str(number) / "score-prm")
        found = np.concatenate(
            [row[schema.ADVANTAGES] for row in read_rows(tmp_path / str(number) / "compute-advantages")]
        )
        expected = np.array(case["expected"]["opd_advantage"]["advantages"])[np.array(case["response_mask"])]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_teacher_with_another_tokenizer_scores_nothing(
    tiny: Path, prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    teacher = Path(shutil.copytree(tiny, tmp_path / "teacher"))
    text = (teacher / "tokenizer.json").read_text(encoding="utf-8")
    swapped = text.replace('"A":', '"was A":').replace('"B":', '"A":').replace('"was A":', '"B":')
    (teacher / "tokenizer.json").write_text(swapped, encoding="utf-8")
    sampled = tmp_path / "generate"
    primecli("generate", "--model", tiny, "--prompts", prompts, "--max-tokens", 2, "--out", sampled)
    result = primecli("score-prm", "--prm", teacher, "--ref", "rollout", "--beta", 1, sampled, check=False)
    assert (result.code, result.paths) == (3, [])
    assert f"was made with another tokenizer than that of the prm {teacher}" in result.line()
