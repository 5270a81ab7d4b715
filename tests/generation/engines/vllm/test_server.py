"""vLLM servers: rollouts, reloads that are proved, servers that hold other weights, servers that die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from primecli.models.identity import model_fingerprint
from primecli.shards import schema
from tests.conftest import read_rows, summary
from tests.generation.engines.vllm.conftest import VllmServer, serving

# a CPU's vLLM fails where a seeded request's prompt is computed in pieces
WHOLE_PROMPTS = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]


@pytest.fixture(scope="module")
def tied(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Serves a model whose embeddings are its head; log-probabilities are raw, as by default."""
    yield from serving(models["tied-0"], tmp_path_factory.mktemp("tied") / "log", *WHOLE_PROMPTS)


@pytest.fixture(scope="module")
def untied(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Serves a model with a head of its own."""
    arguments = [*WHOLE_PROMPTS, "--logprobs-mode", "processed_logprobs"]
    yield from serving(models["untied-0"], tmp_path_factory.mktemp("untied") / "log", *arguments)


@pytest.fixture
def long_prompts(tmp_path: Path) -> Path:
    """Prompts longer than a block of vLLM's prefix cache."""
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{number}+" * 150, "answer": "1"}) + "\n" for number in range(8)))
    return path


def responses(directory: Path) -> list[list[int]]:
    return [row[schema.RESPONSE_IDS] for row in read_rows(directory)]


GREEDY = ["--n", 1, "--temperature", 0, "--max-tokens", 12, "--prompts-per-shard", 4, "--quiet"]


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_reload_gives_the_checkpoints_responses(
    kind: str, models: dict[str, Path], long_prompts: Path, tmp_path: Path, primecli: Any, request: Any
) -> None:
    server: VllmServer = request.getfixturevalue(kind)
    for seed in (1, 0):
        model = models[f"{kind}-{seed}"]
        common = ["generate", "--model", model, "--prompts", long_prompts, *GREEDY]
        remote = [*common, "--engine", "vllm-server", "--url", server.url]
        primecli(*common, "--engine", "hf", "--out", tmp_path / f"hf-{seed}")
        refused = primecli(*remote, "--out", tmp_path / f"refused-{seed}", check=False)
        assert (refused.code, f"{server.url} serves other weights than {model}" in refused.line()) == (1, True)
        assert not list(tmp_path.glob(f"refused-{seed}/*.parquet"))
        primecli(*remote, "--out", tmp_path / f"reloaded-{seed}", "--reload")
        primecli(*remote, "--out", tmp_path / f"kept-{seed}")
        # among them prompts whose keys and values the server had cached under the weights before
        assert responses(tmp_path / f"reloaded-{seed}") == responses(tmp_path / f"hf-{seed}")
        assert responses(tmp_path / f"kept-{seed}") == responses(tmp_path / f"hf-{seed}")
        rows = read_rows(tmp_path / f"reloaded-{seed}")
        assert {row[schema.POLICY_FINGERPRINT] for row in rows} == {model_fingerprint(model)}
    assert not list(models[f"{kind}-0"].parent.glob(".*")), "the directory for the reload is gone"


def test_weights_that_were_reloaded_in_part_are_found_out(
    tied: VllmServer, models: dict[str, Path], prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    # another client reloads as if the head were stored, and the server says that it went well
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(models["tied-1"])}}
    tied.post("/collective_rpc", json=body)
    tied.post("/update_weight_version", json={"new_version": "default"})
    command = ["generate", "--engine", "vllm-server", "--url", tied.url, "--prompts", prompts, *GREEDY]
    for model in (models["tied-0"], models["tied-1"]):
        result = primecli(*command, "--model", model, "--out", tmp_path / "g", check=False)
        assert (result.code, "log-probabilities of the probe are off by" in result.line()) == (1, True)
    primecli(*command, "--model", models["tied-1"], "--out", tmp_path / "g", "--reload")


def test_raw_logprobs_are_refused_where_they_differ(
    tied: VllmServer, models: dict[str, Path], prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    command = ["generate", "--engine", "vllm-server", "--url", tied.url, "--prompts", prompts, "--max-tokens", 8]
    command += ["--model", models["tied-0"], "--reload", "--quiet"]
    result = primecli(*command, "--temperature", 0.7, "--out", tmp_path / "g", check=False)
    assert (result.code, "--logprobs-mode processed_logprobs" in result.line()) == (1, True)
    primecli(*command, "--out", tmp_path / "h")
    primecli("check-logprobs", tmp_path / "h", "--model", models["tied-0"], "--max-gap", 1e-3)


def test_logprobs_are_the_trainers(
    untied: VllmServer, models: dict[str, Path], prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    command = ["generate", "--engine", "vllm-server", "--url", untied.url, "--prompts", prompts, "--reload"]
    command += ["--model", models["untied-1"], "--temperature", 0.7, "--max-tokens", 24, "--out", tmp_path / "g"]
    primecli(*command, "--url", f"{untied.url}/v1")
    primecli("check-logprobs", tmp_path / "g", "--model", models["untied-1"], "--max-gap", 1e-4)


def test_stop_texts_end_responses_where_transformers_ends_them(
    untied: VllmServer, models: dict[str, Path], prompts: Path, tmp_path: Path, primecli: Any
) -> None:
    command = ["generate", "--model", models["untied-1"], "--prompts", prompts, "--n", 1, "--temperature", 0]
    command += ["--max-tokens", 40, "--quiet"]
    ending = [*(item for text in ("<pad>", "<eos>", "L", "7") for item in ("--stop", text))]
    remote = ["--engine", "vllm-server", "--url", untied.url, "--reload"]
    primecli(*command, "--engine", "hf", "--out", tmp_path / "free")
    primecli(*command, *ending, "--engine", "hf", "--out", tmp_path / "hf")
    primecli(*command, *ending, *remote, "--out", tmp_path / "server")
    assert responses(tmp_path / "server") == responses(tmp_path / "hf") != responses(tmp_path / "free")


def test_weights_that_change_in_the_middle_stop_it(
    untied: VllmServer, models: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    with start(untied, models["untied-1"], prompts, tmp_path / "g", "--reload") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        untied.post("/update_weight_version", json={"new_version": "primecli:another"})
        _, words = process.communicate(timeout=60)
    assert (process.returncode, first.strip()) == (1, str(tmp_path / "g" / "rollouts-00000-of-00006.parquet"))
    assert "they are those of another" in words.splitlines()[-1]
    assert summary(tmp_path / "g")["status"] == "failed"


def test_a_server_that_dies_is_one_line_and_a_rerun_makes_the_rest(
    untied: VllmServer, models: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    model = models["untied-0"]
    with start(untied, model, prompts, tmp_path / "whole", "--reload") as process:
        assert process.wait(timeout=60) == 0
    with start(untied, model, prompts, tmp_path / "g", "--retries", "2") as process:
        assert process.stdout is not None
        first = Path(process.stdout.readline().strip())
        untied.kill()
        _, words = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = words.splitlines()
    assert f"primecli generate: {untied.url}: gave no samples in 3 attempts" in line
    assert (tmp_path / "g" / "_summary.json").exists()
    stamp = first.stat().st_mtime_ns
    there = len(list(first.parent.glob("*.parquet")))
    assert 1 <= there < 6
    untied.start()
    with start(untied, model, prompts, tmp_path / "g") as process:
        assert process.wait(timeout=60) == 0
    assert first.stat().st_mtime_ns == stamp
    assert responses(tmp_path / "g") == responses(tmp_path / "whole")


def start(server: VllmServer, model: Path, prompts: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """A `generate` of six shards that takes some seconds, one group at a time."""
    command = [sys.executable, "-m", "primecli", "generate", "--engine", "vllm-server", "--url", server.url]
    command += ["--model", str(model), "--prompts", str(prompts), "--out", str(out), "--n", "4", "--quiet"]
    command += ["--max-tokens", "120", "--prompts-per-shard", "2", "--concurrency", "1", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_closed_pipe_aborts_what_the_server_samples(
    untied: VllmServer, models: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    with start(untied, models["untied-0"], prompts, tmp_path / "g", "--reload", "--concurrency", "64") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 0
    assert summary(tmp_path / "g")["status"] == "stopped-by-reader"
    # nothing is left to wait for
    untied.post("/pause", params={"mode": "wait"})
    untied.post("/resume")
