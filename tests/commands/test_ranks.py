"""Updates on several ranks: one rank gives the bytes of a process without ranks, and two give its numbers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from primecli.models.identity import model_fingerprint
from primecli.setup.tiny_model import make_model
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, shell, summary
from tests.in_ranks import ROOT, run_in_ranks
from tests.models.architectures import save

GROUPS, SIZE = 7, 4
COMMON = ["--lr", "1e-3", "--mini-batch", 12, "--micro-batch-tokens", 60, "--quiet"]
"""Three mini-batches, of which the last is smaller; of some, one of two ranks has a micro-batch less."""

SAVING = ["--gradient-checkpointing", "--offload-optimizer", "--preflight"]
CURVE = [
    *("--schedule", "cosine", "--warmup-steps", "2", "--total-steps", "5", "--min-lr", "1e-4"),
    *("--adam-betas", "0.8", "0.95", "--adam-eps", "1e-6", "--weight-decay", "0.1", "--no-decay-norms"),
]
BALANCE = ["--balance", "boundary,weight"]
UPDATES: dict[str, list[str]] = {
    "policy": ["update-policy", "--policy", "MODEL"],
    "policy-kl": ["update-policy", "--policy", "MODEL", "--ref", "MODEL", "--kl-coef", "0.1", "--entropy-coef", "0.01"],
    "policy-bfloat16": ["update-policy", "--policy", "MODEL", "--dtype", "bfloat16", "--packing", "on"],
    "policy-saving": ["update-policy", "--policy", "MODEL", *SAVING],
    "policy-compiled": [
        "update-policy",
        "--policy",
        "MODEL",
        "--compile",
        "--packing",
        "on",
        "--gradient-checkpointing",
    ],
    "policy-one-step": ["update-policy", "--policy", "MODEL", "--mini-batch", "1000"],
    "policy-gspo": [
        *("update-policy", "--policy", "MODEL", "--policy-loss", "gspo", "--off-policy-mask", "0.01"),
        *("--mismatch-band", "0.9", "1.1", "--mismatch-level", "geometric"),
        *("--clip-cov", "0.1", "--clip-cov-band", "-1", "1", "--kl-cov", "0.1"),
    ],
    "policy-adam": ["update-policy", "--policy", "MODEL", *CURVE],
    "lora": ["update-policy", "--policy", "MODEL", "--lora-rank", "4", *CURVE],
    "lora-bfloat16": ["update-policy", "--policy", "MODEL", "--lora-rank", "4", "--dtype", "bfloat16"],
    "prm-ce": ["update-prm", "--prm", "MODEL", "--ref", "MODEL", "--beta", "0.5"],
    "prm-dpo": ["update-prm", "--prm", "MODEL", "--ref", "shards", "--loss", "dpo", "--mini-batch", "8"],
    "prm-prefix": [
        "update-prm",
        "--prm",
        "MODEL",
        "--ref",
        "MODEL",
        "--loss",
        "prefix",
        "--balance",
        "boundary,weight",
    ],
    "prm-lora": ["update-prm", "--prm", "MODEL", "--ref", "MODEL", "--lora-rank", "4"],
    "critic": ["update-critic", "--critic", "MODEL"],
}


IN_TWO = (
    *("policy", "policy-adam", "policy-bfloat16", "policy-one-step", "policy-gspo", "lora", "lora-bfloat16"),
    "policy-compiled",
    *("prm-ce", "prm-dpo", "prm-prefix", "critic"),
)


ARCHITECTURES = {
    "Gemma 2": "prm-ce",  # caps its logits
    "Granite 4 hybrid": "prm-ce",  # scales them, and stores all experts of a layer in one tensor
    "Zamba2": "prm-lora",  # has layers that share weights
}
"""Which update of which architecture."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in bfloat16, so that the exported model is not its own float32 copy."""
    return make_model(tmp_path_factory.mktemp("models") / "half", dtype="bfloat16")


@pytest.fixture(scope="module")
def batch(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Responses of 1 to 40 tokens, with everything that an update may ask for."""
    generator = np.random.default_rng(0)
    rows = rollouts(GROUPS, SIZE, policy_fingerprint=model_fingerprint(model))
    for row in rows:
        length = int(generator.integers(1, 40))
        row[schema.RESPONSE_IDS] = generator.integers(0, 250, length).tolist()
        for name in (schema.ADVANTAGES, schema.RETURNS):
            row[name] = generator.normal(size=length).tolist()
        for name in (schema.ROLLOUT_LOGPROBS, schema.REF_LOGPROBS):
            row[name] = (-5.5 + 0.1 * generator.normal(size=length)).tolist()
        row[schema.VALUES] = [0.0] * length
    return write_shards(tmp_path_factory.mktemp("batch") / "in", rows, per_shard=12)


def command(name: str, model: Path, batch: Path, checkpoint: Path) -> list[Any]:
    words = [str(model) if word == "MODEL" else word for word in UPDATES[name]]
    return [words[0], *COMMON, *words[1:], "--checkpoint", checkpoint, batch]


def files(checkpoint: Path) -> dict[str, bytes]:
    """The files of a checkpoint that say nothing of how and when it was made."""
    kept = [path for path in checkpoint.rglob("*") if path.is_file()]
    kept = [path for path in kept if path.name not in ("_summary.json", "primecli.json", "steps.jsonl")]
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in kept}


def steps(checkpoint: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (checkpoint / "trainer/steps.jsonl").read_text().splitlines()]


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes this process the only rank of a launcher, for the next command."""

    def become() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")

    return become


@pytest.mark.parametrize("name", UPDATES)
def test_one_rank_gives_the_bytes_of_none(
    name: str, model: Path, batch: Path, tmp_path: Path, primecli: Any, one_rank: Callable[[], None]
) -> None:
    primecli(*command(name, model, batch, tmp_path / "plain"))
    one_rank()
    primecli(*command(name, model, batch, tmp_path / "one"))
    assert files(tmp_path / "one") == files(tmp_path / "plain")
    assert steps(tmp_path / "one") == steps(tmp_path / "plain")
    record = json.loads((tmp_path / "one/trainer/primecli.json").read_text())
    plain = json.loads((tmp_path / "plain/trainer/primecli.json").read_text())
    assert record["provenance"][-1]["ranks"] == 1
    for different in ("provenance",):
        del record[different], plain[different]
    assert record == plain


SCORES = {
    "score-prm": ["score-prm", "--prm", "MODEL", "--ref", "OTHER", "--beta", "0.5"],
    "score-values": ["score-values", "--critic", "MODEL"],
}


def columns(directory: Path) -> dict[str, list[float]]:
    """The columns of numbers that the stages of `SCORES` add."""
    names = (schema.PRM_LOGPROBS, schema.REF_LOGPROBS, schema.PROCESS_REWARDS, schema.VALUES)
    rows = read_rows(directory)
    return {name: [value for row in rows for value in row[name]] for name in names if name in rows[0]}


def score(stage: str, model: Path, other: Path, batch: Path, out: Path) -> list[Any]:
    words = [{"MODEL": model, "OTHER": other}.get(word, word) for word in SCORES[stage]]
    return [*words, "--micro-batch-tokens", 60, "--quiet", batch, "--out", out]


@pytest.mark.parametrize("stage", SCORES)
def test_one_rank_scores_as_none_does(
    stage: str, model: Path, other: Path, batch: Path, tmp_path: Path, primecli: Any, one_rank: Callable[[], None]
) -> None:
    primecli(*score(stage, model, other, batch, tmp_path / "plain"))
    one_rank()
    primecli(*score(stage, model, other, batch, tmp_path / "one"))
    assert columns(tmp_path / "one") == columns(tmp_path / "plain")


def test_two_ranks_give_the_numbers_of_one_process(
    model: Path, other: Path, batch: Path, tmp_path: Path, primecli: Any
) -> None:
    """Every kind of update and of score, one twice, and updates that continue: one test, so that ranks start once."""
    again, later = tmp_path / "again", ("policy-adam", "lora")
    commands = [command(name, model, batch, tmp_path / "two" / name) for name in IN_TWO]
    commands.append(command("policy", model, batch, again))
    for name in later:
        onward = command(name, tmp_path / "two" / name, batch, tmp_path / "two-later" / name)
        commands.append([*onward, "--max-staleness", 1])
    commands += [score(stage, model, other, batch, tmp_path / "two" / stage) for stage in SCORES]
    for name, update in ARCHITECTURES.items():
        save(name, tmp_path / "models" / name)
        one_step = command(update, tmp_path / "models" / name, batch, tmp_path / "two" / name)
        commands.append([*one_step, "--mini-batch", 1000])
    assert run_in_ranks(2, commands) == [0] * len(commands)
    assert files(again) == files(tmp_path / "two/policy")  # each time the same bits
    for name in IN_TWO:
        primecli(*command(name, model, batch, tmp_path / name))
        compare(tmp_path / "two" / name, tmp_path / name, 2e-2 if "bfloat16" in name else 1e-5)
    for name in later:  # by one process, from what two ranks have written
        onward = command(name, tmp_path / "two" / name, batch, tmp_path / "later" / name)
        primecli(*onward, "--max-staleness", 1)
        compare(tmp_path / "two-later" / name, tmp_path / "later" / name, 1e-5)
        assert summary(tmp_path / "later" / name)["metrics"]["step"] == 6
    for stage in SCORES:
        primecli(*score(stage, model, other, batch, tmp_path / stage))
        found, expected = columns(tmp_path / "two" / stage), columns(tmp_path / stage)
        assert {name: pytest.approx(values, abs=1e-5) for name, values in expected.items()} == found
        assert summary(tmp_path / "two" / stage)["rows"] == GROUPS * SIZE

    for name, update in ARCHITECTURES.items():
        primecli(*command(update, tmp_path / "models" / name, batch, tmp_path / name), "--mini-batch", 1000)
        compare(tmp_path / "two" / name, tmp_path / name, 1e-4)


def compare(left: Path, right: Path, tolerance: float) -> None:
    """Whether two checkpoints are the same but for rounding. tolerance: of what a parameter has moved, absolute."""
    names = {str(path.relative_to(left)) for path in left.rglob("*.safetensors")}
    assert names == {str(path.relative_to(right)) for path in right.rglob("*.safetensors")}
    for name in names:
        one, other = load_file(left / name), load_file(right / name)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert tensor.dtype == other[key].dtype
            gap = (tensor.double() - other[key].double()).abs().max()
            bits = 2**-8 * tensor.double().abs().max() if tensor.dtype == torch.bfloat16 else 0
            assert gap <= tolerance + bits, (name, key, gap)
    assert (left / "config.json").read_bytes() == (right / "config.json").read_bytes()
    for found, expected in zip(steps(left), steps(right), strict=True):
        assert found == pytest.approx(expected, rel=0.05 if tolerance > 1e-3 else 1e-4, abs=tolerance)


def test_stdin_belongs_to_rank_0(model: Path, batch: Path, tmp_path: Path) -> None:
    """A pipe into two ranks: no path is lost, and each is passed on once."""
    shutil.copytree(batch, tmp_path / "in")
    words = ["update-policy", "--policy", model, *COMMON, "--checkpoint", tmp_path / "1", "--nproc", 2]
    done = shell(f"ls in/*.parquet | primecli {' '.join(map(str, words))}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"in/{path.name}" for path in sorted((tmp_path / "in").glob("*.parquet"))]
    found = summary(tmp_path / "1")
    assert found["config"]["nproc"] == "2"
    assert found["metrics"]["load_seconds"] > 0
    assert found["metrics"]["save_seconds"] > 0


def test_an_error_of_the_ranks_is_one_line(model: Path, batch: Path, tmp_path: Path) -> None:
    """The first of the ranks that fail says it, with its exit code, and the launcher nothing of its own."""
    words = ["update-policy", "--policy", model, *COMMON, "--checkpoint", tmp_path / "1", "--nproc", 2]
    done = subprocess.run(
        [sys.executable, "-m", "primecli", *map(str, words), "--max-logprob-gap", "1e-9", str(batch)],
        cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (5, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("primecli update-policy: the mean gap |rollout_logprobs - old_logprobs| is")
    assert not (tmp_path / "1").exists()
    assert not list(tmp_path.glob(".*.tmp*"))


@pytest.mark.parametrize("nproc", ["0", "two", "-1"])
def test_a_number_of_ranks_that_is_none(nproc: str, model: Path, batch: Path, tmp_path: Path, primecli: Any) -> None:
    result = primecli(*command("policy", model, batch, tmp_path / "1"), "--nproc", nproc, check=False)
    assert result.code == 2
    assert "is not auto or a number of at least 1" in result.line()


def test_nproc_within_ranks(
    model: Path, batch: Path, tmp_path: Path, primecli: Any, one_rank: Callable[[], None]
) -> None:
    one_rank()
    result = primecli(*command("policy", model, batch, tmp_path / "1"), "--nproc", 2, check=False)
    assert result.code == 2
    assert "torchrun or srun has started the ranks already" in result.line()
