"""score-prm: computes the process reward of every response token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from primecli.files import Json
from primecli.models.options import Beta, Prm, PrmOptions, Ref
from primecli.options import Option, Out, Shards
from primecli.pipeline.options import StageOptions
from primecli.stages.rank_scoring import RankScoringOptions, on_ranks

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from primecli.stages.scorer import ShardScorer


@dataclass(frozen=True, kw_only=True)
class ScorePrmOptions(PrmOptions, RankScoringOptions, StageOptions):
    """The options of `primecli score-prm`."""

    prm: Prm
    ref: Ref
    shards: Shards = ()
    beta: Beta = 0.05
    objective: Annotated[
        str | None,
        Option(
            "Warn unless the PRM was trained with this objective, as update-prm --loss names it. A different --beta is "
            "always warned of.  [default: any]",
            "call",  # `execution` adds it where it is given
            metavar="NAME",
        ),
    ] = None
    out: Out = None

    def execution(self) -> dict[str, Json]:
        """Adds the objective where one is expected, so that records are as before where not."""
        return {**super().execution(), **({} if self.objective is None else {"objective": self.objective})}


def score_prm(options: ScorePrmOptions) -> None:
    """Adds to shards the process reward of every response token, and the log-probabilities that it comes from."""
    on_ranks(options, _score, open_scorer)


def _score(options: ScorePrmOptions) -> None:
    from primecli.models.identity import measured_before_update, trained_otherwise
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.rollouts import reference_columns
    from primecli.stages.scorer import score_shards

    with StageRun("score-prm", options, finish=metrics) as run:

        def look_at_prm(directories: Mapping[str, Path]) -> None:
            run.facts.update(measured_before_update(directories["prm"]))
            trained = trained_otherwise(directories["prm"], options.beta, options.objective)
            if trained is not None:
                expected = f"--objective {options.objective} " if options.objective and "--loss" in trained else ""
                expected += f"--beta {options.beta:g}" if "--beta" in trained else ""
                run.warn(f"{directories['prm']} was trained with {trained}, but scores with {expected.strip()}")

        score_shards(run, options, _names(options), open_scorer, reference_columns(options.ref), look_at_prm)


def _names(options: ScorePrmOptions) -> dict[str, str]:
    """The models by role."""
    from primecli.shards.rollouts import STORED_REFERENCES

    return {"prm": options.prm, **({} if options.ref in STORED_REFERENCES else {"ref": options.ref})}


def open_scorer(options: ScorePrmOptions) -> ShardScorer:
    """What computes the columns of score-prm, in this process or in a worker."""
    from primecli.models.loading import load_model
    from primecli.stages.scorer import LoadedModels, ShardScorer

    return ShardScorer(
        LoadedModels(options, _names(options), load_model), partial(_with_process_rewards, options=options)
    )


def _with_process_rewards(
    table: pa.Table, logprobs: dict[str, np.ndarray], options: ScorePrmOptions
) -> tuple[pa.Table, dict[str, float]]:
    """The table with the columns of score-prm, and its counts. logprobs: (N,) nats, by role: prm and perhaps ref."""
    import numpy as np
    import torch

    from primecli.core.rewards import implicit_process_rewards
    from primecli.shards import schema
    from primecli.shards.columns import flat_column, list_column, with_columns
    from primecli.shards.rollouts import STORED_REFERENCES, check_untouched_distribution

    if options.ref == "rollout":
        check_untouched_distribution({name: table[name].to_numpy() for name in schema.SAMPLED_WITH}, "--ref rollout")
    if options.ref in STORED_REFERENCES:
        logprobs["ref"], _ = flat_column(table, STORED_REFERENCES[options.ref])
    prm, ref = torch.from_numpy(logprobs["prm"]), torch.from_numpy(logprobs["ref"].copy())  # (N,) each
    rewards = implicit_process_rewards(prm, ref, options.beta).numpy()  # (N,)
    columns = {
        schema.PRM_LOGPROBS: logprobs["prm"],
        schema.REF_LOGPROBS: logprobs["ref"],
        schema.PROCESS_REWARDS: rewards,
    }
    counts = {"rollouts": table.num_rows, "tokens": len(rewards), "reward_sum": float(rewards.sum(dtype=np.float64))}
    _, lengths = flat_column(table, schema.RESPONSE_IDS)
    return with_columns(table, {name: list_column(values, lengths, name) for name, values in columns.items()}), counts


def metrics(counts: dict[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    if not counts.get("tokens"):
        return {}
    return {
        "process_reward_per_token": counts["reward_sum"] / counts["tokens"],
        "process_reward_per_response": counts["reward_sum"] / counts["rollouts"],
    }
