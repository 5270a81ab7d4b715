"""What results are identified by must not change by accident: shards and checkpoints that exist have to stay valid.

tests/golden/recipes.json holds recipes, fingerprints and execution options as the stages of examples/arithmetic
recorded them (the first iteration, with PPO), and those of an import.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from primecli.models.options import Dtype
from primecli.options import Options
from primecli.pipeline.recipe import Recipe
from primecli.stages.compute_advantages import ComputeAdvantagesOptions
from primecli.stages.filter import FilterOptions
from primecli.stages.generate import GenerateOptions
from primecli.stages.import_ import ImportOptions
from primecli.stages.score_prm import ScorePrmOptions
from primecli.stages.score_values import ScoreValuesOptions
from primecli.stages.update_critic import UpdateCriticOptions
from primecli.stages.update_policy import UpdatePolicyOptions
from primecli.stages.update_prm import UpdatePrmOptions
from primecli.stages.verify import VerifyOptions
from primecli.training.advantage_options import Granularity
from primecli.training.options import LossAggregation
from primecli.training.policy_options import RatioLevel

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "recipes.json").read_text())
RUN = "work/gae-process-seed0"
SFT = "work/sft"

OPTIONS: dict[str, Any] = {
    "generate": GenerateOptions(
        model=SFT,
        prompts=(Path("work/task/train.jsonl"),),
        out=Path(RUN, "1", "generate"),
        batch_prompts=128,
        engine="hf",
        max_tokens=80,
    ),
    "import": ImportOptions(
        files=(Path("work/task/labelled.jsonl"),), model=SFT, out=Path("work", "offline", "import")
    ),
    "verify": VerifyOptions(),
    "filter": FilterOptions(),
    "score-prm": ScorePrmOptions(prm=f"{RUN}/prm/1", ref=SFT),
    "score-values": ScoreValuesOptions(critic=SFT),
    "compute-advantages": ComputeAdvantagesOptions(estimator="gae"),
    "update-prm": UpdatePrmOptions(prm=SFT, ref=SFT, checkpoint=Path(RUN, "prm", "1"), lr=3e-4, mini_batch=64),
    "update-critic": UpdateCriticOptions(critic=SFT, checkpoint=Path(RUN, "critic", "1"), lr=1e-3, mini_batch=64),
    "update-policy": UpdatePolicyOptions(policy=SFT, checkpoint=Path(RUN, "policy", "1"), lr=1e-4, mini_batch=64),
}
ADDED = {"verify": ("verifiers",), "filter": ("groups_wanted_still",)}
"""What a stage adds to its options' recipe shard by shard."""

POLICY = OPTIONS["update-policy"]
PRM = OPTIONS["update-prm"]
ADVANTAGES = OPTIONS["compute-advantages"]


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision of a machine without a GPU, where the recipes were recorded."""
    monkeypatch.setattr("primecli.models.options.resolve_dtype", lambda device, dtype: "float32")


@pytest.mark.parametrize("stage", OPTIONS)
def test_recipes_and_fingerprints_are_those_recorded(stage: str) -> None:
    recorded = RECORDED[stage]
    recipe = recorded["recipe"]
    added = {name: recipe["config"][name] for name in ADDED.get(stage, ())}
    options = OPTIONS[stage]
    options.check()
    assert {**options.recipe(), **added} == recipe["config"]
    assert options.execution() == recorded["execution"]
    again = Recipe(stage, {**options.recipe(), **added}, recipe["models"], recipe["inputs"], options.recorded_seed())
    assert again.as_json() == recipe
    assert again.fingerprint() == recorded["fingerprint"]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (replace(POLICY, ref=SFT, kl_coef=0.1), {"kl_coef": 0.1, "ref": "model"}),
        (replace(POLICY, ref="shards", kl_coef=0.1), {"kl_coef": 0.1, "ref": "shards"}),
        (replace(POLICY, lora_rank=4), {"lora_rank": 4, "lora_alpha": 32.0, "lora_targets": []}),
        (
            replace(POLICY, lora_rank=4, lora_alpha=8.0, lora_targets="v_proj,q_proj"),
            {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": ["q_proj", "v_proj"]},
        ),
        (replace(PRM, ref="rollout", loss="dpo"), {"ref": "rollout", "loss": "dpo"}),
        (replace(PRM, loss="prefix"), {"loss": "prefix", "beta": 10.0, "margin": 5.0}),
        (replace(PRM, loss="prefix", beta=2.0, margin=0.0), {"loss": "prefix", "beta": 2.0, "margin": 0.0}),
        (replace(PRM, margin=1.0, balance="weight, boundary"), {"margin": 1.0, "balance": ["boundary", "weight"]}),
        (
            replace(ADVANTAGES, estimator="rloo", granularity=Granularity.step, step_separator="\\n\\n"),
            {"estimator": "rloo", "lam": None, "granularity": "step", "step_separator": "\n\n"},
        ),
        (
            replace(POLICY, policy_loss="gspo"),
            {"policy_loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "loss_aggregation": "seq-mean-token-mean"},
        ),
        (
            replace(POLICY, policy_loss="sapo", tau_negative=2.0, loss_aggregation=LossAggregation.token_mean),
            {"policy_loss": "sapo", "clip_low": None, "clip_high": None, "tau_positive": 1.0, "tau_negative": 2.0},
        ),
        (
            replace(POLICY, tis_cap=2.0, tis_level=RatioLevel.sequence, mismatch_band=(0.5, 2.0), off_policy_mask=0.1),
            {"tis_cap": 2.0, "tis_level": "sequence", "mismatch_band": [0.5, 2.0], "off_policy_mask": 0.1},
        ),
        (
            replace(POLICY, clip_cov=2e-4, kl_cov=0.02, kl_cov_coef=0.5),
            {"clip_cov": 2e-4, "kl_cov": 0.02, "kl_cov_coef": 0.5},
        ),
        (replace(OPTIONS["filter"], min_std=0.1), {"min_std": 0.1}),
        (replace(OPTIONS["verify"], overlong=(80, 16)), {"overlong": [80, 16], "overlong_penalty": 1.0}),
        (replace(OPTIONS["generate"], batch_prompts=None), {"batch_prompts": None, "step": None}),
        (replace(OPTIONS["generate"], system="Be brief."), {"system": "Be brief."}),
        (replace(OPTIONS["generate"], stop=("b", "a", "b")), {"stop": ["a", "b"]}),
        (
            replace(OPTIONS["generate"], chat_template_arg=("enable_thinking=false",)),
            {"chat_template_args": {"enable_thinking": False}},
        ),
    ],
)
def test_what_changes_the_result_changes_the_recipe(options: Options, changed: dict[str, Any]) -> None:
    options.check()
    stage = next(name for name, one in OPTIONS.items() if type(one) is type(options))
    assert options.recipe() == {**OPTIONS[stage].recipe(), **changed}


@pytest.mark.parametrize(
    "options",
    [
        replace(POLICY, threads=2, micro_batch_tokens=99, gradient_checkpointing=True, offload_optimizer=True),
        replace(POLICY, clip_low=0.2, clip_high=0.2, loss_aggregation=LossAggregation.token_mean),  # the defaults
        replace(POLICY, strict=True, max_logprob_gap=0.1, max_staleness=2, measure=0, force=True, quiet=True),
        replace(PRM, beta=0.05, margin=0.0),  # the defaults
        replace(OPTIONS["score-prm"], objective="prefix"),
        replace(PRM, evaluate=False, preflight=True, dtype=Dtype.float32),
        replace(OPTIONS["generate"], tensor_parallel=2, concurrency=3),
        replace(OPTIONS["generate"], no_chat_template=True),  # the texts decide whether it changes anything
        replace(OPTIONS["verify"], workers=3, max_errors=4),
        replace(OPTIONS["verify"], ray="auto", ray_workers=2, ray_resources='{"num_cpus": 4}'),
        replace(OPTIONS["score-prm"], workers=2, devices="0,1"),
        replace(OPTIONS["generate"], ray="10.0.0.1:6379"),
    ],
)
def test_what_leaves_the_result_leaves_the_recipe(options: Options) -> None:
    stage = next(name for name, one in OPTIONS.items() if type(one) is type(options))
    assert options.recipe() == OPTIONS[stage].recipe()


def test_what_shares_the_work_is_recorded_where_it_is_given() -> None:
    before = OPTIONS["score-prm"].execution()
    assert replace(OPTIONS["score-prm"], workers=2).execution() == {**before, "workers": 2}
    there = replace(OPTIONS["score-prm"], ray="auto", ray_resources='{"num_gpus": 0.5}').execution()
    assert there == {**before, "ray": "auto", "ray_resources": {"num_gpus": 0.5}}
