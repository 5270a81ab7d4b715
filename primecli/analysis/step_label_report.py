"""The evaluation of a PRM on step labels as plain values, with intervals from resampling prompts, by data source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from primecli.analysis.estimates import Estimate, GroupedSamples, Statistic, estimate
from primecli.analysis.evaluation import ALL, NO_SOURCE
from primecli.analysis.step_labels import LabelledSteps, best_threshold, chance_f1, first_below, harmonic_mean
from primecli.analysis.step_scores import By
from primecli.errors import InputError
from primecli.models.steps import step_sums
from primecli.shards import parquet, schema
from primecli.shards.columns import flat_column
from primecli.shards.parquet import Shard
from primecli.shards.rollouts import check_lists
from primecli.shards.steps import given_step_ends
from primecli.shards.streaming import stream

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256  # in memory at once
NEEDED = (schema.GROUP_ID, schema.RESPONSE_IDS, schema.PROCESS_REWARDS, schema.STEP_ENDS, schema.FIRST_WRONG_STEP)
OUTCOME = "outcome"
"""The baseline: an outcome model, which can call the last step wrong and no other."""


def read_labelled_steps(shards: Iterable[Shard]) -> tuple[list[LabelledSteps], int]:
    """The responses whose first wrong step is known, and how many others there are.

    Raises InputError for missing columns, lists that do not fit the response, and where no response is labelled.
    """
    found: list[LabelledSteps] = []
    rows = 0
    for shard in shards:
        parquet.require_columns(shard.path, shard.footer.columns, NEEDED)
        optional = [name for name in (schema.PROMPT_ID, schema.DATA_SOURCE) if name in shard.footer.columns]
        for first_row, table in stream(shard.path, [*NEEDED, *optional], rows=BATCH_ROWS):
            check_lists(table, shard.path, first_row=first_row)
            found += _labelled(table, shard.path, first_row)
            rows += table.num_rows
    if not found:
        raise InputError(
            f"no response says which step is wrong: {schema.FIRST_WRONG_STEP} is null in all {rows:,} rows",
            "import solutions with labels of their steps",
        )
    return found, rows - len(found)


def _labelled(table: pa.Table, path: Path, first_row: int) -> Iterator[LabelledSteps]:
    """The responses of a table whose first wrong step is known. first_row: its first row in the shard."""
    rewards, lengths = flat_column(table, schema.PROCESS_REWARDS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    names = table.column_names
    prompts = table[schema.PROMPT_ID if schema.PROMPT_ID in names else schema.GROUP_ID].to_pylist()
    sources = table[schema.DATA_SOURCE].to_pylist() if schema.DATA_SOURCE in names else [None] * len(prompts)
    labels = table[schema.FIRST_WRONG_STEP].to_pylist()
    for row, ends in enumerate(given_step_ends(table, path, first_row=first_row)):
        label = labels[row]
        if ends is None or label is None:
            continue
        if not -1 <= label < len(ends):
            what = f"is {label} at row {first_row + row}, and the response has {len(ends)} steps"
            raise InputError(f"{path}: {schema.FIRST_WRONG_STEP} {what}", "see `primecli validate`")
        sums = step_sums(rewards[starts[row] : starts[row + 1]].astype(np.float64), ends)
        yield LabelledSteps(sources[row] or NO_SOURCE, prompts[row], label, sums, np.diff(ends, prepend=-1))


def evaluate_step_labels(
    responses: Sequence[LabelledSteps],
    *,
    by: Sequence[By],
    threshold: float | None = None,
    threshold_from: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The evaluation as plain values, as `--json` prints it: over all responses, and for each data source.

    by: the scores of a step to evaluate. threshold: for all of them; None for the one with the best F1 on the data
    source `threshold_from`, which is one of theirs, or on all responses. seed: of the resampling.

    Raises InputError where the responses that a threshold is to be found on do not have both kinds.
    """
    sources = sorted({one.source for one in responses})
    chosen = [one for one in responses if threshold_from in (None, one.source)]
    parts = {
        ALL: list(responses),
        **{source: [one for one in responses if one.source == source] for source in sources},
    }
    methods: dict[str, Any] = {}
    for method in (*by, OUTCOME):
        limit = threshold
        if limit is None or method == OUTCOME:
            limit = _found_threshold(chosen, method, threshold_from)
        described = {name: _describe(part, method, limit, seed) for name, part in parts.items()}
        of_sources = [described[source]["f1"]["value"] for source in sources]
        methods[str(method)] = {
            "threshold": limit,
            ALL: described[ALL],
            "mean_f1": None if None in of_sources else float(np.mean(of_sources)),
            "sources": {source: described[source] for source in sources},
        }
    shape = {name: _shape(part, seed) for name, part in parts.items()}
    return {
        "threshold_from": None if threshold is not None else threshold_from or ALL,
        "methods": methods,
        ALL: shape[ALL],
        "sources": {source: shape[source] for source in sources},
    }


def _scores(one: LabelledSteps, method: By | str) -> np.ndarray:
    return one.scores(method) if isinstance(method, By) else one.outcome_scores()


def _found_threshold(responses: Sequence[LabelledSteps], method: By | str, source: str | None) -> float:
    try:
        found, _ = best_threshold([_scores(one, method) for one in responses], [one.first_wrong for one in responses])
    except ValueError:
        kind = "with a wrong step" if all(one.first_wrong < 0 for one in responses) else "without a wrong step"
        where = f"--threshold-from {source}" if source is not None else "the threshold"
        raise InputError(
            f"{where}: there is no response {kind} to find it on", "give a number with --threshold"
        ) from None
    return found


def _describe(responses: Sequence[LabelledSteps], method: By | str, threshold: float, seed: int) -> dict[str, Any]:
    """F1 and its parts, each an estimate as a dict; the value is None where there is nothing to compute it from."""
    samples = _grouped(responses)
    wrong = np.array([one.first_wrong >= 0 for one in responses])
    hit = np.array([first_below(_scores(one, method), threshold) == one.first_wrong for one in responses])
    sums = np.stack([samples.sums(which) for which in (hit & wrong, wrong, hit & ~wrong, ~wrong)])  # (4, G)

    def f1(counts: np.ndarray) -> float:
        found, wrongs, passed, rights = sums @ counts
        return harmonic_mean(found / wrongs, passed / rights) if wrongs and rights else np.nan

    statistics = {
        "f1": Statistic(f1, np.ones(len(samples.size), dtype=bool), len(responses)),
        "wrong-found": samples.mean(hit, wrong, share=True),
        "right-passed": samples.mean(hit, ~wrong, share=True),
    }
    return _as_values(estimate(statistics, seed=seed))


def _shape(responses: Sequence[LabelledSteps], seed: int) -> dict[str, Any]:
    """What does not depend on a threshold: counts, F1 by chance, and how often the lowest step is the last."""
    steps = np.array([len(one.rewards) for one in responses])
    wrong = np.array([one.first_wrong >= 0 for one in responses])
    several = steps > 1
    lowest = np.array([one.last_is_lowest for one in responses])
    share = _grouped(responses).mean(lowest, several, share=True)
    return {
        "responses": len(responses),
        "wrong": int(wrong.sum()),
        "steps": float(steps.mean()),
        "chance_f1": chance_f1(steps[wrong]) if wrong.any() and not wrong.all() else None,
        **_as_values(estimate({"last-lowest": share}, seed=seed)),
        "last-lowest-chance": float((1 / steps[several]).mean()) if several.any() else None,
    }


def _grouped(responses: Sequence[LabelledSteps]) -> GroupedSamples:
    numbers: dict[tuple[str, str], int] = {}
    return GroupedSamples(np.array([numbers.setdefault((one.source, one.prompt), len(numbers)) for one in responses]))


def _as_values(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: {key: asdict(one)[key] for key in ("value", "low", "high")} for name, one in estimates.items()}
