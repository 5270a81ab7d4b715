"""compute-advantages: computes the advantages of a batch's tokens from its rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from primecli.options import Shards
from primecli.pipeline.options import StageOptions
from primecli.training.advantage_options import AdvantageOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from primecli.models.steps import StepFinder
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard
    from primecli.shards.rollouts import Rollouts
    from primecli.training.advantages import BatchAdvantages


@dataclass(frozen=True, kw_only=True)
class ComputeAdvantagesOptions(AdvantageOptions, StageOptions):
    """The options of `primecli compute-advantages`."""

    shards: Shards = ()


def compute_advantages(options: ComputeAdvantagesOptions) -> None:
    """Adds advantages and returns to the shards of a batch. Reads all of them before it writes the first."""
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards import schema

    with StageRun("compute-advantages", options, finish=metrics) as run:
        columns = [schema.OUTCOME_REWARD] if options.needs_outcomes() else []
        columns += [schema.PROCESS_REWARDS] if options.process_coef else []
        columns += [schema.VALUES] if options.estimator == "gae" else []
        needs = [*columns, schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS]
        batch = list(run.shards(needs, while_idle=_import_torch))
        finder = _step_finder(run, batch, options) if batch and options.separator() is not None else None
        earned = _earned(batch) if batch and options.process_trust else {}
        run.record(earned)
        parts: list[_Part] = []
        recipe = run.batch_recipe(batch, earned)
        for number, shard in enumerate(batch):
            if run.skip(shard, batch=recipe):
                continue
            if not parts:
                rollouts, computed = _compute(batch, columns, options, finder, earned)
                run.gauges.update(computed.metrics)
                parts = _parts(rollouts, computed.columns)
            _commit_shard(run, shard, parts[number])


def _import_torch() -> None:
    import torch  # noqa: F401


def _earned(batch: Sequence[Shard]) -> dict[str, float | None]:
    """How well the PRM ranked responses before it was trained on them, as score-prm recorded it in the shards.

    Raises InputError where a shard does not say, or another shard says something else.
    """
    from primecli.errors import InputError
    from primecli.shards.provenance import PRM_PAIR_ACCURACY

    found: dict[float | None, Path] = {}
    for shard in batch:
        scored = next((made for made in reversed(shard.footer.provenance) if made.get("stage") == "score-prm"), None)
        if scored is None or PRM_PAIR_ACCURACY not in scored:
            raise InputError(
                f"--process-trust: {shard.path} does not say how well its PRM ranked responses before its last update",
                "train the PRM with update-prm, without --no-evaluate, and score again with score-prm",
            )
        accuracy = scored[PRM_PAIR_ACCURACY]
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise InputError(f"{shard.path}: {PRM_PAIR_ACCURACY} is {accuracy}, not a share", "score it again")
        found.setdefault(accuracy, shard.path)
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise InputError(
            f"--process-trust: the shards were scored by different PRMs, of pair accuracy {first} in {one} and "
            f"{second} in {other}",
            "score the whole batch with one PRM",
        )
    return {PRM_PAIR_ACCURACY: next(iter(found))}


def _step_finder(run: StageRun, batch: Sequence[Shard], options: AdvantageOptions) -> StepFinder:
    """Finds the steps. The fingerprint of the tokenizer goes into the recipe, unless the shards say where steps end.

    Raises InputError where the tokenizer is needed and not found.
    """
    from primecli.errors import InputError
    from primecli.models.steps import StepFinder
    from primecli.models.token_text import Spellers, sampling_model

    spellers = Spellers(options.tokenizer)
    finder = StepFinder(options.separator() or "", spellers, "--granularity step")
    if all(_says_steps(shard) for shard in batch):
        return finder
    path, provenance = batch[0].path, batch[0].footer.provenance
    speller = spellers.find(path, provenance)
    if speller is None:
        name, _ = sampling_model(provenance)
        raise InputError(
            f"--granularity step needs the tokenizer that the rollouts were sampled with, but {path} "
            + (f"names {name}, which does not exist here" if name else "does not name it"),
            "name it with --tokenizer",
        )
    run.models["tokenizer"] = speller.fingerprint()
    return finder


def _says_steps(shard: Shard) -> bool:
    """Whether every row of a shard says where its steps end."""
    from primecli.shards import parquet, schema

    if schema.STEP_ENDS not in shard.footer.columns:
        return False
    return not parquet.read_table(shard.path, [schema.STEP_ENDS], expected=shard.footer)[schema.STEP_ENDS].null_count


def _compute(
    batch: Sequence[Shard],
    columns: Sequence[str],
    options: AdvantageOptions,
    finder: StepFinder | None,
    earned: dict[str, float | None],
) -> tuple[Rollouts, BatchAdvantages]:
    """The rollouts of the batch, and what to add to them.

    finder: None unless the granularity is step. earned: as `_earned` found it; empty without --process-trust.
    """
    from primecli.core.process_rewards import trust
    from primecli.shards.provenance import PRM_PAIR_ACCURACY
    from primecli.shards.rollouts import load_rollouts
    from primecli.training.advantages import BatchAdvantages, batch_advantages

    rollouts = load_rollouts(batch, columns, token_ids=False)
    ends = None if finder is None else _step_ends(batch, rollouts, finder)
    share, trusted = options.process_share, {}
    if share is not None and earned:
        (accuracy,) = earned.values()
        trusted = {"process_trust": trust(accuracy), **({} if accuracy is None else {PRM_PAIR_ACCURACY: accuracy})}
        share *= trusted["process_trust"]
    found = batch_advantages(rollouts, options, ends, share=share)
    return rollouts, BatchAdvantages(found.columns, {**found.metrics, **trusted})


def _step_ends(batch: Sequence[Shard], rollouts: Rollouts, finder: StepFinder) -> np.ndarray:
    """(N,) bool: True on the last token of each step of each response."""
    import numpy as np

    from primecli.shards import parquet, schema

    starts = rollouts.starts()  # (B + 1,)
    marks = np.zeros(starts[-1], dtype=bool)
    row = 0
    for shard in batch:
        names = [name for name in (schema.RESPONSE_IDS, schema.STEP_ENDS) if name in shard.footer.columns]
        table = parquet.read_table(shard.path, names, expected=shard.footer)
        for ends in finder.ends(table, shard):
            marks[starts[row] + ends] = True
            row += 1
    return marks


class _Part(NamedTuple):
    """What is computed for one shard. lengths: (b,) response tokens of each row. columns: (n,) each, by name."""

    lengths: np.ndarray
    columns: dict[str, np.ndarray]


def _parts(rollouts: Rollouts, columns: dict[str, np.ndarray]) -> list[_Part]:
    """The shards' parts, in their order. columns: (N,) each, of the whole batch."""
    import numpy as np

    starts = rollouts.starts()  # (B + 1,): where each row's tokens begin
    rows = np.cumsum([0, *rollouts.shard_rows])  # where each shard's rows begin
    return [
        _Part(
            rollouts.response_lengths[first:last],
            {name: column[starts[first] : starts[last]] for name, column in columns.items()},
        )
        for first, last in pairwise(rows)
    ]


def _commit_shard(run: StageRun, shard: Shard, part: _Part) -> None:
    """Writes one shard of the batch."""
    from primecli.shards.columns import list_column, with_columns

    lists = {name: list_column(column, part.lengths, name) for name, column in part.columns.items()}
    run.commit(with_columns(run.read(shard), lists), _counts(part.columns))


def _counts(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Sums over the tokens of a shard, from which `metrics` computes the metrics of the directory."""
    import numpy as np

    from primecli.shards import schema

    double = {name: column.astype(np.float64) for name, column in columns.items()}
    advantages, returns = double[schema.ADVANTAGES], double[schema.RETURNS]
    counts = {
        "tokens": len(returns),
        "positive": int((advantages > 0).sum()),
        "return_sum": float(returns.sum()),
        "return_squares": float(np.square(returns).sum()),
        "advantage_sum": float(advantages.sum()),
        "advantage_squares": float(np.square(advantages).sum()),
    }
    for name in (schema.OUTCOME_ADVANTAGES, schema.PROCESS_ADVANTAGES):
        if name in double:
            counts[f"{name}_sum"] = float(double[name].sum())
            counts[f"{name}_product"] = float((double[name] * advantages).sum())
    return counts


def metrics(counts: dict[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    from primecli.shards import schema

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
        for name in (schema.OUTCOME_ADVANTAGES, schema.PROCESS_ADVANTAGES)
        if f"{name}_sum" in counts and variance > 0
    }
    return {
        "return_mean": mean,
        "return_std": max(counts["return_squares"] / tokens - mean**2, 0.0) ** 0.5,
        "positive_advantages": counts["positive"] / tokens,
        **shares,
    }
