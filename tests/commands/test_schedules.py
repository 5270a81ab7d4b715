"""Learning rates and the settings of AdamW: a run that is cut anywhere follows the curve of a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from primecli.models.identity import model_fingerprint
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import summary

STEPS, GROUP = 6, 4
STEP_LINES = Path("trainer") / "steps.jsonl"
WARMUP, TOTAL, PEAK, LOWEST = 2, 5, 1e-2, 1e-3
CURVE: list[Any] = [
    "--schedule",
    "cosine",
    "--warmup-steps",
    WARMUP,
    "--total-steps",
    TOTAL,
    "--lr",
    PEAK,
    "--min-lr",
    LOWEST,
]
ADAM: list[Any] = ["--adam-betas", "0.8", "0.95", "--adam-eps", "1e-6", "--weight-decay", "0.1", "--no-decay-norms"]

UPDATES: dict[str, list[Any]] = {
    "update-prm": ["--prm", "MODEL", "--ref", "shards"],
    "update-policy": ["--policy", "MODEL", "--old-logprobs", "rollout", "--max-staleness", STEPS, "--measure", 0],
    "update-critic": ["--critic", "MODEL"],
}


@pytest.fixture(scope="module")
def batch(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard for each step, with what every update needs; no model has sampled or scored it."""
    rows = rollouts(STEPS, GROUP, policy_fingerprint=model_fingerprint(tiny))
    generator = np.random.default_rng(0)
    for row in rows:
        length = len(row[schema.RESPONSE_IDS])
        row |= {name: generator.normal(size=length).tolist() for name in (schema.ADVANTAGES, schema.RETURNS)}
        row |= {schema.VALUES: [0.0] * length, schema.REF_LOGPROBS: [-5.5] * length}
    return write_shards(tmp_path_factory.mktemp("batch") / "in", rows, per_shard=GROUP)


def command(stage: str, model: Path, checkpoint: Path) -> list[Any]:
    words = [model if word == "MODEL" else word for word in UPDATES[stage]]
    return [stage, *words, "--checkpoint", checkpoint, "--mini-batch", GROUP, "--no-shuffle", "--quiet", *CURVE, *ADAM]


def steps(*checkpoints: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in checkpoints for line in (path / STEP_LINES).read_text().splitlines()]


def weights(checkpoint: Path) -> dict[str, bytes]:
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("stage", "more", "cuts"),
    [
        ("update-prm", [], (1, 3, 5)),
        ("update-policy", ["--lora-rank", 2], (2,)),
        ("update-critic", ["--offload-optimizer"], (4,)),
    ],
)
def test_a_run_that_is_cut_anywhere_follows_the_curve_of_a_whole_one(
    stage: str, more: list[Any], cuts: tuple[int, ...], tiny: Path, batch: Path, tmp_path: Path, primecli: Any
) -> None:
    whole = tmp_path / "whole"
    result = primecli(*command(stage, tiny, whole), *more, batch)
    assert result.line() == (
        f"primecli {stage}: step 6 is beyond --total-steps 5: the learning rate stays at --min-lr 0.001"
    )
    shards = sorted(batch.glob("*.parquet"))
    for cut in cuts:
        model, parts = tiny, []
        for name, part in (("first", shards[:cut]), ("second", shards[cut:])):
            parts.append(tmp_path / f"{cut}-{name}")
            primecli(*command(stage, model, parts[-1]), *more, *part)
            model = parts[-1]
        assert weights(parts[-1]) == weights(whole)
        assert steps(*parts) == steps(whole)
        means = [np.mean([step["lr"] for step in steps(path)]) for path in parts]
        assert [summary(path)["metrics"]["lr"] for path in parts] == pytest.approx(means, rel=1e-12)


def expected_rates() -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    curve = get_cosine_with_min_lr_schedule_with_warmup(optimizer, WARMUP, TOTAL, min_lr=LOWEST)
    (factor,) = curve.lr_lambdas
    return [PEAK / 2, PEAK, *(PEAK * factor(step) for step in range(WARMUP, TOTAL)), LOWEST]


def test_the_steps_have_the_rates_of_transformers_and_others_than_without(
    tiny: Path, batch: Path, tmp_path: Path, primecli: Any
) -> None:
    primecli(*command("update-prm", tiny, tmp_path / "one"), batch)
    assert [step["lr"] for step in steps(tmp_path / "one")] == pytest.approx(expected_rates(), rel=1e-12)
    found = {}
    for name, left_out in [("schedule", CURVE[:2]), ("betas", ADAM[:3]), ("eps", ADAM[3:5]), ("norms", ADAM[-1:])]:
        words = command("update-prm", tiny, tmp_path / name)
        start = words.index(left_out[0])
        del words[start : start + len(left_out)]
        if name == "schedule":
            for option in ("--total-steps", "--min-lr"):
                start = words.index(option)
                del words[start : start + 2]
        primecli(*words, batch)
        found[name] = weights(tmp_path / name)["model.safetensors"]
    primecli(*command("update-prm", tiny, tmp_path / "decay"), "--weight-decay", "0.2", batch)
    found["decay"] = weights(tmp_path / "decay")["model.safetensors"]
    found["all"] = weights(tmp_path / "one")["model.safetensors"]
    assert len(set(found.values())) == len(found)


def test_a_rerun_finds_the_same_curve_and_no_other(tiny: Path, batch: Path, tmp_path: Path, primecli: Any) -> None:
    words = command("update-prm", tiny, tmp_path / "one")
    primecli(*words, batch)
    primecli(*words, batch)
    words[words.index("--total-steps") + 1] = TOTAL + 1
    result = primecli(*words, batch, check=False)
    assert (result.code, "total_steps was 5, is 6" in result.line()) == (1, True)


@pytest.mark.parametrize("stage", UPDATES)
def test_a_schedule_without_an_end_is_refused(stage: str, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    words = command(stage, tiny, tmp_path / "x")
    start = words.index("--schedule")
    result = primecli(*words[:start], "--schedule", "linear", tmp_path, check=False)
    assert (result.code, result.line()) == (
        2,
        f"primecli {stage}: --schedule linear needs --total-steps (give the number of optimizer steps of the whole "
        "training, over all iterations)",
    )


def test_a_layer_without_gradient_in_some_steps_continues_to_the_bit(
    tiny: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of a model whose second layer computes only for long rows, as an expert does for some tokens."""
    compute = Qwen2DecoderLayer.forward

    def forward(layer: Any, hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        if layer.self_attn.layer_idx == 1 and hidden.shape[1] < 10:
            return hidden
        return compute(layer, hidden, *arguments, **named)

    monkeypatch.setattr(Qwen2DecoderLayer, "forward", forward)
    rows = rollouts(4, 2)
    for number, row in enumerate(rows):
        length = 20 if number // 2 in (1, 3) else 4
        row |= {schema.RESPONSE_IDS: list(range(length)), schema.REF_LOGPROBS: [-5.5] * length}
    directory = write_shards(tmp_path / "in", rows, per_shard=2)
    common = ["--ref", "shards", "--mini-batch", 2, "--no-shuffle", "--lr", "1e-2", "--packing", "off", "--quiet"]
    primecli("update-prm", "--prm", tiny, "--checkpoint", tmp_path / "whole", *common, directory)
    model = tiny
    for number, shard in enumerate(sorted(directory.glob("*.parquet")), start=1):
        primecli("update-prm", "--prm", model, "--checkpoint", tmp_path / str(number), *common, shard)
        model = tmp_path / str(number)
        record = json.loads((model / "trainer/primecli.json").read_text())
        expected = {1: 0, 2: 1, 3: 1, 4: 2}[number]
        assert set(record["own_steps"].values()) == {expected}
        assert all(name.startswith("model.layers.1.") for name in record["own_steps"])
    assert weights(model) == weights(tmp_path / "whole")
    start, end = (load_file(path / "model.safetensors") for path in (tiny, model))
    assert all(not torch.equal(start[name], end[name]) for name in start)


def test_a_count_of_steps_that_cannot_be_is_refused(tiny: Path, batch: Path, tmp_path: Path, primecli: Any) -> None:
    primecli(*command("update-prm", tiny, tmp_path / "1"), batch)
    record = json.loads((tmp_path / "1/trainer/primecli.json").read_text())
    assert "own_steps" not in record
    record["own_steps"] = {"model.norm.weight": STEPS + 1}
    (tmp_path / "1/trainer/primecli.json").write_text(json.dumps(record))
    result = primecli(*command("update-prm", tmp_path / "1", tmp_path / "2"), batch, check=False)
    assert (result.code, "own_steps.model.norm.weight: is 7, of 6 steps" in result.line()) == (3, True)
