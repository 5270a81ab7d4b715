"""`primecli compute-advantages`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    import numpy as np

    from primecli.files import Json
    from primecli.inputs import Shard
    from primecli.rollouts import Rollouts
    from primecli.stage import StageRun


class EstimatorName(StrEnum):
    """How advantages are estimated."""

    rloo = "rloo"


class ProcessNorm(StrEnum):
    """How process rewards are scaled."""

    batch = "batch"
    none = "none"


class ProcessBaseline(StrEnum):
    """What is taken off process rewards."""

    paper = "paper"
    recipe = "recipe"


def compute_advantages(
    shards: options.Shards = None,
    estimator: Annotated[
        EstimatorName, typer.Option("--estimator", help="rloo: a leave-one-out baseline.")
    ] = EstimatorName.rloo,
    outcome_coef: Annotated[
        float,
        typer.Option("--outcome-coef", help="Weight of the outcome reward; 0 leaves it out.", callback=options.finite),
    ] = 1.0,
    process_coef: Annotated[
        float,
        typer.Option(
            "--process-coef", help="Weight of the process rewards; 0 leaves them out.", callback=options.finite
        ),
    ] = 1.0,
    gamma: Annotated[
        float, typer.Option("--gamma", min=0.0, max=1.0, help="Discount of process rewards.", callback=options.finite)
    ] = 1.0,
    process_norm: Annotated[
        ProcessNorm,
        typer.Option("--process-norm", help="batch: divide process rewards by the batch's largest |reward-to-go|."),
    ] = ProcessNorm.batch,
    process_baseline: Annotated[
        ProcessBaseline,
        typer.Option(
            "--process-baseline", help="paper: the mean of the others; recipe: as in the first code and verl."
        ),
    ] = ProcessBaseline.paper,
    drop_last_token_reward: Annotated[
        bool, typer.Option("--drop-last-token-reward", help="Leave the last token's process reward out, as verl does.")
    ] = False,
    whiten: Annotated[
        bool, typer.Option("--whiten/--no-whiten", help="Mean 0 and variance 1 over all response tokens of the batch.")
    ] = True,
    out: options.Out = None,
    force: options.Force = False,
    partial: options.Partial = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn rewards into token advantages.

    Combines outcome and process rewards. Reads the whole batch before it writes: scaling and whitening are
    over all of it, never over a shard. --process-coef 0 is outcome-only RLOO and needs no score-prm.

    Example:

      primecli compute-advantages --outcome-coef 1 --process-coef 1 runs/1/score-prm
    """
    from primecli import schema
    from primecli.rollouts import load_rollouts
    from primecli.stage import StageOptions, StageRun

    config: dict[str, Json] = {
        "estimator": estimator.value,
        "outcome_coef": outcome_coef,
        "process_coef": process_coef,
        "gamma": gamma,
        "process_norm": process_norm.value,
        "process_baseline": process_baseline.value,
        "drop_last_token_reward": drop_last_token_reward,
        "whiten": whiten,
    }
    run = StageRun(
        "compute-advantages", StageOptions(shards or (), out, force, partial, quiet), config=config, finish=_metrics
    )
    with run:
        columns = [schema.OUTCOME_REWARD] if outcome_coef else []
        columns += [schema.PROCESS_REWARDS] if process_coef else []
        batch = list(run.shards([*columns, schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS]))
        todo = None
        starts = [0]
        for number, shard in enumerate(batch):
            if run.skip(shard, inputs=batch):
                continue
            if todo is None:
                rollouts = load_rollouts(batch, columns, token_ids=False)
                todo = advantages_of(rollouts, config)
                for rows in rollouts.shard_rows:
                    starts.append(starts[-1] + rows)
            _commit_shard(run, shard, rollouts, todo, starts[number], starts[number + 1])


def advantages_of(rollouts: Rollouts, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns, each (N,) float32, rows one after another; computed in float64."""
    import numpy as np
    import torch

    from primecli import schema
    from primecli.core.advantages import ESTIMATORS, whiten
    from primecli.core.ragged import pad, response_mask, unpad
    from primecli.core.rewards import drop_last_token, scale_over_batch
    from primecli.errors import InputError

    lengths = torch.from_numpy(rollouts.response_lengths)
    mask = response_mask(lengths)  # (B, T)
    outcome = torch.zeros(len(lengths), dtype=torch.float64)  # (B,)
    if schema.OUTCOME_REWARD in rollouts.values:
        outcome = torch.from_numpy(rollouts.values[schema.OUTCOME_REWARD].astype(np.float64))
        if bool(outcome.isnan().any()):
            raise InputError(
                f"outcome_reward is null in {int(outcome.isnan().sum())} rows",
                "the verifier could not grade them; `primecli filter` drops their groups",
            )
    process = torch.zeros(mask.shape, dtype=torch.float64)  # (B, T)
    if schema.PROCESS_REWARDS in rollouts.values:
        process = pad(torch.from_numpy(rollouts.values[schema.PROCESS_REWARDS].astype(np.float64)), lengths)
        if config["drop_last_token_reward"]:
            process = drop_last_token(process, mask)
        if config["process_norm"] == "batch":
            process = scale_over_batch(process, mask, config["gamma"])
    try:
        returns = ESTIMATORS[config["estimator"]](
            outcome,
            process,
            mask,
            torch.from_numpy(rollouts.group_index),
            outcome_coef=config["outcome_coef"],
            process_coef=config["process_coef"],
            gamma=config["gamma"],
            process_baseline=config["process_baseline"],
        )
        advantages = whiten(returns, mask) if config["whiten"] else returns
    except ValueError as error:
        raise InputError(str(error), "sample more responses of each prompt with `generate --n`") from error
    return unpad(advantages, mask).float().numpy(), unpad(returns, mask).float().numpy()


def _commit_shard(
    run: StageRun, shard: Shard, rollouts: Rollouts, values: tuple[np.ndarray, np.ndarray], first: int, last: int
) -> None:
    import numpy as np

    from primecli import schema
    from primecli.shards import list_column, with_columns

    tokens = rollouts.starts()
    lengths = rollouts.response_lengths[first:last]
    advantages, returns = (column[tokens[first] : tokens[last]] for column in values)
    table = with_columns(
        run.read(shard),
        {
            schema.ADVANTAGES: list_column(advantages, lengths, schema.ADVANTAGES),
            schema.RETURNS: list_column(returns, lengths, schema.RETURNS),
        },
    )
    counts = {
        "tokens": len(returns),
        "positive": int((advantages > 0).sum()),
        "return_sum": float(returns.sum(dtype=np.float64)),
        "return_squares": float(np.square(returns, dtype=np.float64).sum()),
    }
    run.commit(table, counts)


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    tokens = counts.get("tokens")
    if not tokens:
        return {}
    mean = counts["return_sum"] / tokens
    return {
        "return_mean": mean,
        "return_std": max(counts["return_squares"] / tokens - mean**2, 0.0) ** 0.5,
        "positive_advantages": counts["positive"] / tokens,
    }
