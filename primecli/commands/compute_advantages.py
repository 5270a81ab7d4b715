"""`primecli compute-advantages`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from primecli.models.token_text import Speller
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard
    from primecli.shards.rollouts import Rollouts
    from primecli.stages.compute_advantages import Settings


class EstimatorName(StrEnum):
    """How advantages are estimated."""

    rloo = "rloo"
    reinforce = "reinforce"
    grpo = "grpo"
    dr_grpo = "dr-grpo"
    gae = "gae"


class Granularity(StrEnum):
    """Where process rewards stand."""

    token = "token"
    step = "step"
    whole = "whole"


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
        EstimatorName,
        typer.Option(
            "--estimator",
            help="rloo: less the mean of the group's others; reinforce: no baseline; grpo: less the group's mean, over "
            "its deviation; dr-grpo: grpo without the division; gae: with a critic's values.",
        ),
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
    outcome_gamma: Annotated[
        float,
        typer.Option(
            "--outcome-gamma",
            min=0.0,
            max=1.0,
            help="Discount a token of the outcome reward, which stands on the last.",
            callback=options.finite,
        ),
    ] = 1.0,
    process_gamma: Annotated[
        float,
        typer.Option(
            "--process-gamma",
            min=0.0,
            max=1.0,
            help="Discount a token of process rewards.",
            callback=options.finite,
        ),
    ] = 1.0,
    lam: Annotated[
        float,
        typer.Option("--lam", min=0.0, max=1.0, help="gae: 1 trusts rewards, 0 the critic.", callback=options.finite),
    ] = 0.95,
    granularity: Annotated[
        Granularity,
        typer.Option(
            "--granularity",
            help="Process rewards a token, or their sum a step on its last token, or a response on its last.",
        ),
    ] = Granularity.token,
    step_separator: options.StepSeparator = "\\n",
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--tokenizer",
            metavar="DIR|HUB_ID",
            help="For steps, whose tokens it spells.  [default: the model that generate names in the shards]",
            show_default=False,
        ),
    ] = None,
    process_norm: Annotated[
        ProcessNorm,
        typer.Option("--process-norm", help="batch: divide process rewards by the batch's largest |reward-to-go|."),
    ] = ProcessNorm.batch,
    process_baseline: Annotated[
        ProcessBaseline,
        typer.Option(
            "--process-baseline", help="rloo: paper, the mean of the others; recipe, as in the first code and verl."
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
    """Combines outcome and process rewards. Reads the whole batch before it writes: scaling and whitening are
    over all of it, never over a shard. --process-coef 0 is outcome-only and needs no score-prm;
    --estimator gae needs score-values.

    outcome_advantages and process_advantages say how much of each token's advantage came from which source.

    Example:

      primecli compute-advantages --outcome-coef 1 --process-coef 1 runs/1/score-prm
    """
    from primecli.pipeline.stage_run import StageOptions, StageRun
    from primecli.shards import schema
    from primecli.stages.compute_advantages import Settings

    settings = Settings(
        estimator.value,
        outcome_coef,
        process_coef,
        outcome_gamma,
        process_gamma,
        lam if estimator is EstimatorName.gae else None,
        granularity.value,
        options.separator(step_separator) if granularity is Granularity.step else None,
        process_norm.value,
        process_baseline.value,
        drop_last_token_reward,
        whiten,
    )
    settings.check()
    run = StageRun(
        "compute-advantages",
        StageOptions(shards or (), out, force, partial, quiet),
        config=settings.as_json(),
        finish=_metrics,
    )
    with run:
        columns = [schema.OUTCOME_REWARD] if outcome_coef else []
        columns += [schema.PROCESS_REWARDS] if process_coef else []
        columns += [schema.VALUES] if settings.estimator == "gae" else []
        batch = list(
            run.shards([*columns, schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS], while_idle=_import_torch)
        )
        speller = _speller(run, batch, tokenizer) if batch and settings.step_separator is not None else None
        todo: dict[str, np.ndarray] | None = None
        starts = [0]
        for number, shard in enumerate(batch):
            if run.skip(shard, inputs=batch):
                continue
            if todo is None:
                rollouts, todo = _compute(batch, columns, settings, speller)
                for rows in rollouts.shard_rows:
                    starts.append(starts[-1] + rows)
            _commit_shard(run, shard, rollouts, todo, starts[number], starts[number + 1])


def _import_torch() -> None:
    import torch  # noqa: F401


def _speller(run: StageRun, batch: Sequence[Shard], given: str | None) -> Speller:
    """What spells the responses, its identity taken into the recipe."""
    from primecli.errors import InputError
    from primecli.models.token_text import Spellers, sampler

    path, provenance = batch[0].path, batch[0].footer.provenance
    speller = Spellers(given).find(path, provenance)
    if speller is None:
        name, _ = sampler(provenance)
        raise InputError(
            f"--granularity step needs the tokenizer that the rollouts were sampled with, and {path} "
            + (f"names {name}, which is not here" if name else "does not say which"),
            "name it with --tokenizer",
        )
    run.models["tokenizer"] = speller.fingerprint()
    return speller


def _compute(
    batch: Sequence[Shard], columns: Sequence[str], settings: Settings, speller: Speller | None
) -> tuple[Rollouts, dict[str, np.ndarray]]:
    from primecli.models.steps import step_ends
    from primecli.shards.rollouts import load_rollouts
    from primecli.stages.compute_advantages import advantages_of

    rollouts = load_rollouts(batch, columns, token_ids=speller is not None)
    ends = None
    if speller is not None:
        responses = (ids.tolist() for ids in rollouts.response_ids)
        ends = step_ends(responses, speller.known_texts, settings.step_separator or "")
    return rollouts, advantages_of(rollouts, settings, ends)


def _commit_shard(
    run: StageRun, shard: Shard, rollouts: Rollouts, values: dict[str, np.ndarray], first: int, last: int
) -> None:
    import numpy as np

    from primecli.shards import schema
    from primecli.shards.parquet import list_column, with_columns

    starts = rollouts.starts()
    lengths = rollouts.response_lengths[first:last]
    mine = {name: column[starts[first] : starts[last]] for name, column in values.items()}
    lists = {name: list_column(column, lengths, name) for name, column in mine.items()}
    wide = {name: column.astype(np.float64) for name, column in mine.items()}
    advantages, returns = wide[schema.ADVANTAGES], wide[schema.RETURNS]
    counts = {
        "tokens": len(returns),
        "positive": int((advantages > 0).sum()),
        "return_sum": float(returns.sum()),
        "return_squares": float(np.square(returns).sum()),
        "advantage_sum": float(advantages.sum()),
        "advantage_squares": float(np.square(advantages).sum()),
    }
    for name in (schema.OUTCOME_ADVANTAGES, schema.PROCESS_ADVANTAGES):
        if name in wide:
            counts[f"{name}_sum"] = float(wide[name].sum())
            counts[f"{name}_product"] = float((wide[name] * advantages).sum())
    run.commit(with_columns(run.read(shard), lists), counts)


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    tokens = counts.get("tokens")
    if not tokens:
        return {}
    mean = counts["return_sum"] / tokens
    advantage_mean = counts["advantage_sum"] / tokens
    variance = counts["advantage_squares"] / tokens - advantage_mean**2
    shares = {
        f"{name.removesuffix('_advantages')}_variance_share": (
            counts[f"{name}_product"] / tokens - counts[f"{name}_sum"] / tokens * advantage_mean
        )
        / variance
        for name in ("outcome_advantages", "process_advantages")
        if f"{name}_sum" in counts and variance > 0
    }
    return {
        "return_mean": mean,
        "return_std": max(counts["return_squares"] / tokens - mean**2, 0.0) ** 0.5,
        "positive_advantages": counts["positive"] / tokens,
        **shares,
    }
