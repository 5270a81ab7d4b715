from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.models.device import resolve_placement
from primecli.models.loading import load_model
from primecli.models.scoring import score
from primecli.shards import schema
from primecli.shards.rollouts import Sequences, truncated_sampling
from tests.builders import rollouts, write_shards


def table(capfd: Any, primecli: Any, *arguments: object) -> dict[str, dict[str, float]]:
    """The table that the command prints: the numbers of each engine, by column."""
    from primecli import cli

    capfd.readouterr()
    assert cli.run(["check-logprobs", *map(str, arguments)]) == 0
    head, *lines = capfd.readouterr().out.splitlines()
    names = [name.strip() for name in head.split("  ") if name.strip()]
    cells = [[cell for cell in line.split(" ") if cell] for line in lines]
    return {row[0]: dict(zip(names[1:], map(float, row[1:]), strict=True)) for row in cells}


def shifted(model: Path, directory: Path, gap: np.ndarray, temperature: float = 1.0) -> Path:
    """Rollouts whose log-probabilities are the model's minus a gap, (N,)."""
    rows = rollouts(4, 2, **{schema.TEMPERATURE: temperature})
    place = resolve_placement("cpu", "float32")
    sequences = Sequences(
        [np.array(row[schema.PROMPT_IDS]) for row in rows],
        [np.array(row[schema.RESPONSE_IDS]) for row in rows],
        np.full(len(rows), temperature, dtype=np.float32),
    )
    exact = score(load_model(model, place), place, sequences, micro_batch_tokens=1000).astype(np.float64)
    ends = np.cumsum([len(row[schema.RESPONSE_IDS]) for row in rows])
    assert len(exact) == len(gap)
    for row, values in zip(rows, np.split(exact - gap, ends[:-1]), strict=True):
        row[schema.ROLLOUT_LOGPROBS] = values
    return write_shards(directory, rows, per_shard=4)


TOKENS = sum(len(row[schema.RESPONSE_IDS]) for row in rollouts(4, 2))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_numbers_describe_the_gap(
    temperature: float, tiny: Path, tmp_path: Path, primecli: Any, capfd: Any
) -> None:
    gap = np.random.default_rng(0).normal(0, 0.3, size=TOKENS)
    directory = shifted(tiny, tmp_path / "generate", gap, temperature)
    found = table(capfd, primecli, directory, "--model", tiny)["unknown"]
    assert (found["rollouts"], found["tokens"]) == (8, TOKENS)
    assert found["gap mean"] == pytest.approx(np.abs(gap).mean(), rel=1e-2)
    assert found["gap p95"] == pytest.approx(np.quantile(np.abs(gap), 0.95), rel=1e-2)
    assert found["gap max"] == pytest.approx(np.abs(gap).max(), rel=1e-2)
    weights = np.exp(gap)
    assert found["ess tokens"] == pytest.approx(weights.sum() ** 2 / (len(gap) * (weights**2).sum()), abs=1e-3)
    starts = np.cumsum([0, *(len(row[schema.RESPONSE_IDS]) for row in rollouts(4, 2))])[:-1]
    whole = np.exp(np.add.reduceat(gap, starts))
    assert found["ess responses"] == pytest.approx(whole.sum() ** 2 / (8 * (whole**2).sum()), abs=1e-3)


def test_what_generate_sampled_passes_by_engine(
    tiny: Path, other: Path, prompts: Path, tmp_path: Path, primecli: Any, capfd: Any
) -> None:
    made = tmp_path / "generate"
    arguments = ["--n", 2, "--max-tokens", 8, "--temperature", 0.7, "--engine", "hf"]
    primecli("generate", "--model", tiny, "--prompts", prompts, "--out", made, *arguments)
    found = table(capfd, primecli, made, "--model", tiny, "--max-gap", 1e-4)
    assert list(found) == ["hf"]
    assert found["hf"]["ess tokens"] == found["hf"]["ess responses"] == 1.0
    wrong = primecli("check-logprobs", made, "--model", other, "--max-gap", 0.1, check=False)
    assert wrong.code == 5
    assert "24 of 24 rollouts were sampled with other weights" in wrong.err
    assert "log-probabilities of hf are off by" in wrong.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({schema.TOP_P: 0.9}, "check-logprobs needs rollouts sampled with top_p 1"),
        ({schema.TEMPERATURE: 0.0}, "sampled greedily"),
    ],
)
def test_rollouts_of_another_distribution_are_refused(
    columns: dict[str, Any], message: str, tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "generate", rollouts(2, 2, **columns))
    result = primecli("check-logprobs", directory, "--model", tiny, check=False)
    assert (result.code, message in result.line()) == (3, True)


def test_truncated_sampling_is_reported_with_its_count() -> None:
    top_p, top_k = np.array([1.0, 0.9, 1.0]), np.array([0, 0, 5])
    found = truncated_sampling({schema.TOP_P: top_p, schema.TOP_K: top_k})
    assert found is not None
    assert found.startswith("2 of 3 rollouts")
    assert truncated_sampling({schema.TOP_P: np.ones(3), schema.TOP_K: np.zeros(3)}) is None


def test_two_samplings_of_the_same_prompts_are_taken_together(tmp_path: Path, tiny: Path, primecli: Any) -> None:
    rows = rollouts(2, 2)
    directories = [write_shards(tmp_path / name, rows) for name in ("a", "b")]
    (head, one) = map(str, primecli("check-logprobs", "--model", tiny, directories[0], "--quiet").paths)
    (_, both) = map(str, primecli("check-logprobs", "--model", tiny, *directories, "--quiet").paths)
    assert head.split()[:2] == ["engine", "rollouts"]
    assert (one.split()[1], both.split()[1]) == ("4", "8")
    assert one.split()[3:6:2] == both.split()[3:6:2]  # the mean and the largest gap
