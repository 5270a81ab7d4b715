"""compute-advantages: computes the advantages of a batch's tokens from its rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from primecli.options import Shards
from primecli.pipeline.options import StageOptions
from primecli.training.options import AdvantageOptions

if TYPE_CHECKING:
    import numpy as np

    from primecli.models.token_text import Speller
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard
    from primecli.shards.rollouts import Rollouts


@dataclass(frozen=True, kw_only=True)
class ComputeAdvantagesOptions(AdvantageOptions, StageOptions):
    """The options of `primecli compute-advantages`."""

    shards: Shards = ()


def compute_advantages(options: ComputeAdvantagesOptions) -> None:
    """Adds advantages and returns to the shards of a batch. Reads all of them before it writes the first."""
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards import schema

    with StageRun("compute-advantages", options, finish=metrics) as run:
        columns = [schema.OUTCOME_REWARD] if options.outcome_coef else []
        columns += [schema.PROCESS_REWARDS] if options.process_coef else []
        columns += [schema.VALUES] if options.estimator == "gae" else []
        needs = [*columns, schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS]
        batch = list(run.shards(needs, while_idle=_import_torch))
        speller = _speller(run, batch, options.tokenizer) if batch and options.separator() is not None else None
        computed: tuple[Rollouts, dict[str, np.ndarray]] | None = None
        for number, shard in enumerate(batch):
            if run.skip(shard, inputs=batch):
                continue
            computed = computed or _compute(batch, columns, options, speller)
            _commit_shard(run, shard, number, *computed)


def _import_torch() -> None:
    import torch  # noqa: F401


def _speller(run: StageRun, batch: Sequence[Shard], tokenizer: str | None) -> Speller:
    """The text of tokens, by the tokenizer of the rollouts, whose fingerprint goes into the recipe.

    tokenizer: as the user named it; None for that of the model that sampled. Raises InputError if it is not found.
    """
    from primecli.errors import InputError
    from primecli.models.token_text import Spellers, sampling_model

    path, provenance = batch[0].path, batch[0].footer.provenance
    speller = Spellers(tokenizer).find(path, provenance)
    if speller is None:
        name, _ = sampling_model(provenance)
        raise InputError(
            f"--granularity step needs the tokenizer that the rollouts were sampled with, but {path} "
            + (f"names {name}, which does not exist here" if name else "does not name it"),
            "name it with --tokenizer",
        )
    run.models["tokenizer"] = speller.fingerprint()
    return speller


def _compute(
    batch: Sequence[Shard], columns: Sequence[str], options: AdvantageOptions, speller: Speller | None
) -> tuple[Rollouts, dict[str, np.ndarray]]:
    """The rollouts of the batch, and the columns to add, (N,) each. speller: None unless the granularity is step."""
    from primecli.models.steps import step_ends
    from primecli.shards.rollouts import load_rollouts
    from primecli.training.advantages import advantage_columns

    rollouts = load_rollouts(batch, columns, token_ids=speller is not None)
    ends = None
    if speller is not None:
        responses = (ids.tolist() for ids in rollouts.response_ids)
        ends = step_ends(responses, speller.known_texts, options.separator() or "")
    return rollouts, advantage_columns(rollouts, options, ends)


def _commit_shard(run: StageRun, shard: Shard, number: int, rollouts: Rollouts, columns: dict[str, np.ndarray]) -> None:
    """Writes one shard of the batch.

    number: its index among the shards. columns: (N,) each, of the whole batch.
    """
    from primecli.shards.columns import list_column, with_columns

    first = sum(rollouts.shard_rows[:number])  # the shard's rows are those from `first` to `last` - 1
    last = first + rollouts.shard_rows[number]
    starts = rollouts.starts()  # (B + 1,): where each row's tokens begin
    lengths = rollouts.response_lengths[first:last]
    shard_columns = {name: column[starts[first] : starts[last]] for name, column in columns.items()}
    lists = {name: list_column(column, lengths, name) for name, column in shard_columns.items()}
    run.commit(with_columns(run.read(shard), lists), _counts(shard_columns))


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
