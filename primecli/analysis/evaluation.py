"""What a policy is worth on held-out prompts: avg@n, pass@k, maj@k and best-of-k, with intervals, by data source.

Every metric is a mean over prompts of one number per prompt, so that a prompt counts once, however many samples it has;
the intervals come from resampling prompts, and two runs are compared prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from primecli.analysis.at_k import best_of_k, majority_at_k, pass_at_k, weighted_majority
from primecli.analysis.estimates import Estimate, Statistic, estimate
from primecli.analysis.select import Select
from primecli.errors import InputError

ALL = "all"
NO_SOURCE = "unknown"


@dataclass(frozen=True, slots=True)
class Key:
    """Which prompt it is.

    source: its data source; NO_SOURCE where the shard has none.
    prompt_id: its id there.
    """

    source: str
    prompt_id: str


@dataclass(slots=True)
class PromptSamples:
    """The graded samples of one prompt, from all of its groups.

    outcomes: outcome reward of each, in [0, 1].
    answers: what was graded, None where nothing was found; fewer than the outcomes where answers cannot vote, as
        programs cannot.
    scores: what the PRM says of each; empty without process rewards.
    classes: for each sample the number of its answer among those that the verifier tells apart; None without an answer.
    """

    outcomes: list[float] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    classes: list[int | None] = field(default_factory=list)

    @property
    def votes(self) -> bool:
        """Whether there is a majority to ask for."""
        return len(self.answers) == len(self.outcomes)

    def right_classes(self) -> list[float]:
        """By number of the answer, whether it is right, 0 or 1: as the verifier graded it."""
        right = [0.0] * (1 + max((number for number in self.classes if number is not None), default=-1))
        for number, outcome in zip(self.classes, self.outcomes, strict=True):
            if number is not None:
                right[number] = max(right[number], float(outcome >= 1))
        return right


@dataclass(slots=True)
class Samples:
    """The samples of all prompts.

    prompts: by prompt, in the order in which they were read.
    ungraded: samples without an outcome reward, which are in none of them.
    select: how a response's score is made of its process rewards; None without process rewards.
    """

    prompts: dict[Key, PromptSamples]
    ungraded: int
    select: Select | None

    def sources(self) -> list[str]:
        """The data sources, sorted."""
        return sorted({key.source for key in self.prompts})

    def most(self) -> int:
        """The most graded samples of any prompt."""
        return max(len(prompt.outcomes) for prompt in self.prompts.values())


Values = Mapping[str, np.ndarray]
"""By metric, (P,): its value for each prompt; NaN where it is not defined."""


def values_by_prompt(samples: Samples, ks: Sequence[int]) -> Values:
    """Every metric of every prompt. Raises InputError if no prompt has as many graded samples as one of `ks` asks for.

    avg@n: the mean outcome reward. pass@k, maj@k: see `at_k`; a sample is right if its outcome reward is 1.
    best@k: the mean outcome of the sample with the best score among k. weighted-maj@n: the majority of all samples,
    each with the weight sigmoid(score). n is the number of graded samples; the names lack it where it differs.
    """
    prompts = list(samples.prompts.values())
    sizes = np.array([len(prompt.outcomes) for prompt in prompts])  # (P,)
    most = int(sizes.max())
    too_large = [k for k in ks if k > most]
    if too_large:
        raise InputError(
            f"--k {too_large[0]}: no prompt has {too_large[0]} graded samples; the most is {most}",
            "sample more responses with generate --n",
        )
    of_all = f"@{most}" if (sizes == most).all() else ""
    right = np.array([sum(outcome >= 1 for outcome in prompt.outcomes) for prompt in prompts])
    values: dict[str, np.ndarray] = {f"avg{of_all}": np.array([np.mean(prompt.outcomes) for prompt in prompts])}
    values |= {f"pass@{k}": pass_at_k(sizes, right, k) for k in ks}
    if any(prompt.votes for prompt in prompts):
        values |= _at_each_k("maj", ks, [_majorities(prompt) if prompt.votes else None for prompt in prompts])
    if samples.select is not None:
        best = [best_of_k(np.array(prompt.scores), np.array(prompt.outcomes)) for prompt in prompts]
        values |= _at_each_k("best", ks, best)
        if any(prompt.votes for prompt in prompts):
            weighted = [_weighted(prompt) if prompt.votes else np.nan for prompt in prompts]
            values[f"weighted-maj{of_all}"] = np.array(weighted)
    return values


def _at_each_k(name: str, ks: Sequence[int], curves: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    """(P,) for each k, from each prompt's values for k = 1 … n; None for a prompt without them."""
    return {
        f"{name}@{k}": np.array([np.nan if curve is None or len(curve) < k else curve[k - 1] for curve in curves])
        for k in ks
    }


def _majorities(prompt: PromptSamples) -> np.ndarray:
    right = prompt.right_classes()
    counts = [sum(number == index for number in prompt.classes) for index in range(len(right))]
    return majority_at_k(counts, right, len(prompt.outcomes) - sum(counts))


def _weighted(prompt: PromptSamples) -> float:
    weights = np.exp(-np.logaddexp(0.0, -np.array(prompt.scores)))  # sigmoid, without overflow
    return weighted_majority(prompt.classes, weights, prompt.right_classes())


def evaluate(samples: Samples, ks: Sequence[int], *, baseline: Samples | None = None, seed: int = 0) -> dict[str, Any]:
    """The evaluation as plain values, as `--json` prints it: over all prompts, and for each data source.

    ks: the k of pass@k, maj@k and best@k. baseline: another run on the same prompts, to compare with. seed: of the
    resampling.

    Raises InputError as `values_by_prompt`, and if the baseline shares no prompt.
    """
    values = values_by_prompt(samples, ks)
    keys = list(samples.prompts)
    common = _common(samples, baseline) if baseline is not None else []
    other: Values = {}
    if baseline is not None:
        baseline_ks = [k for k in ks if k <= baseline.most()]
        other = values_by_prompt(baseline, baseline_ks)
    described: dict[str, Any] = {}
    for source in [ALL, *samples.sources()]:
        rows = [row for row, key in enumerate(keys) if source in (ALL, key.source)]
        described[source] = _describe(samples, [keys[row] for row in rows], _take(values, rows), seed)
        if baseline is not None:
            shared = [pair for pair in common if source in (ALL, keys[pair[0]].source)]
            described[source]["baseline"] = _differences(values, other, shared, seed)
    sources = {name: described[name] for name in samples.sources()}
    return {"select": samples.select, "ungraded": samples.ungraded, ALL: described[ALL], "sources": sources}


def _take(values: Values, rows: Sequence[int]) -> Values:
    return {name: column[list(rows)] for name, column in values.items()}


def _describe(samples: Samples, keys: Sequence[Key], values: Values, seed: int) -> dict[str, Any]:
    sizes = np.array([len(samples.prompts[key].outcomes) for key in keys])
    counted = {name: column for name, column in values.items() if not np.isnan(column).all()}
    statistics = {name: _mean(column, sizes, share=True) for name, column in counted.items()}
    return {
        "prompts": len(keys),
        "samples": int(sizes.sum()),
        "samples_per_prompt": [int(sizes.min()), int(sizes.max())],
        "metrics": {name: _as_values(value) for name, value in estimate(statistics, seed=seed).items()},
    }


def _as_values(value: Estimate) -> dict[str, Any]:
    return {"value": value.value, "low": value.low, "high": value.high, "prompts": value.groups}


def _mean(values: np.ndarray, sizes: np.ndarray, *, share: bool) -> Statistic:
    """The mean over the prompts that have a value. values: (P,). sizes: (P,), samples of each prompt."""
    counted = ~np.isnan(values)
    filled = np.where(counted, values, 0.0)
    weights = counted.astype(np.float64)
    return Statistic(
        lambda counts: float(filled @ counts / (weights @ counts)), counted, int(sizes[counted].sum()), share
    )


def _common(samples: Samples, baseline: Samples) -> list[tuple[int, int]]:
    """The rows of the prompts that both have, in the order of `samples`."""
    rows = {key: row for row, key in enumerate(baseline.prompts)}
    pairs = [(row, rows[key]) for row, key in enumerate(samples.prompts) if key in rows]
    if not pairs:
        raise InputError(
            "--baseline has none of the prompts that are evaluated",
            "both must be sampled from the same prompt file: they are paired by prompt_id and data_source",
        )
    return pairs


def _differences(values: Values, other: Values, pairs: Sequence[tuple[int, int]], seed: int) -> dict[str, Any]:
    """How much higher each metric is than in the baseline, over the prompts that have it in both."""
    if not pairs:
        return {"prompts": 0, "differences": {}}
    ours, theirs = (list(rows) for rows in zip(*pairs, strict=True))
    differences = {name: column[ours] - other[name][theirs] for name, column in values.items() if name in other}
    statistics = {
        name: _mean(column, np.ones(len(pairs)), share=False)
        for name, column in differences.items()
        if not np.isnan(column).all()
    }
    estimates = estimate(statistics, seed=seed)
    return {"prompts": len(pairs), "differences": {name: _as_values(value) for name, value in estimates.items()}}
