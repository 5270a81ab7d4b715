"""Whether the process reward is still worth optimising: how it follows the outcome, and what else it follows.

A response's score is the sum of its process rewards. `audit_responses` gives everything as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from primecli.analysis.estimates import Estimate, GroupedSamples, Statistic, calibration, estimate, ranks
from primecli.analysis.responses import LONG_RUN, LOOPED, MUCH_REPEATED, NGRAM, Responses
from primecli.core.pairs import count_pairs
from primecli.shards import schema
from primecli.shards.questions import questions
from primecli.shards.streaming import read_row

QUESTION_CHARACTERS = 60  # of a longer question
LARGEST_EXPONENT = 500.0  # of exp: beyond it a sigmoid is 0 or 1, and exp(710) would overflow

METRICS: dict[str, str] = {
    "pair-accuracy": "pairs of a better and a worse response of one group that the score ranks correctly; ties count "
    "half",
    "group-auc": "the same as the mean over groups: each group counts once, however many pairs it has",
    "group-correlation": "of score and outcome, each less its group's mean, in groups with more than one outcome",
    "correlation": "of score and outcome, over the batch",
    "spearman": "of the ranks of score and outcome, over the batch",
    "auc": "chance that a right response of the batch scores higher than a wrong one; ties count half",
    "calibration-error": "mean |predicted - observed| of sigmoid(score), over ten bins",
    "brier": "mean squared error of sigmoid(score)",
    "reward-right": "mean score of right responses",
    "reward-wrong": "mean score of wrong responses",
    "last-lowest": "share of responses of several steps whose last step has the lowest reward: near 1, the PRM says "
    "little of the steps before; needs step_ends or --step-separator",
    "length-correlation": "of score and length in tokens, over the batch",
    "group-length-correlation": "of score and length, each less its group's mean",
    "wrong-length-correlation": "of score and length among wrong responses",
    "repeats": f"share of responses with {MUCH_REPEATED:.0%} of their token {NGRAM}-grams repeated, or {LOOPED:.0%} in "
    f"one stretch, or a token {LONG_RUN} times in a row",
    "repeats-preferred": "their mean score less that of the rest of their group, in standard deviations",
    "duplicates": "share of responses whose tokens are exactly those of another response of their group",
    "distinct": "distinct responses of a group over its responses, mean over groups",
    "truncation": "share of responses cut at their length limit",
    "truncation-preferred": "their mean score less that of the rest of their group, in standard deviations",
}
"""The metrics by name, in the order in which they are shown, with their meaning."""

SECTIONS = {"outcome": "pair-accuracy", "length": "length-correlation", "repeats": "repeats"}
"""What the parts of METRICS are about, each with its first metric."""

UNITS = {"pair-accuracy": "pairs", "group-auc": "pairs"}
"""What a metric is over; the others are over responses."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The values from which a metric is to be watched, and is bad.

    side: `above`, `below`, or `beyond`, which is above in absolute value.
    watch: the milder bound, such as 0.5.
    bad: the stricter one, such as 0.8.
    """

    side: str
    watch: float
    bad: float

    def verdict(self, value: float) -> str:
        """`ok`, `watch` or `bad`."""
        sign = -1 if self.side == "below" else 1
        height = abs(value) if self.side == "beyond" else value
        return "bad" if sign * height > sign * self.bad else "watch" if sign * height > sign * self.watch else "ok"

    def possible(self, metric: Estimate) -> list[str]:
        """The verdicts within the metric's interval, from ok to bad; of its value alone where it has no interval."""
        values = [value for value in (metric.value, metric.low, metric.high) if value is not None]
        if self.side == "beyond" and min(values) <= 0 <= max(values):
            values.append(0.0)
        levels = ["ok", "watch", "bad"]
        indices = [levels.index(self.verdict(value)) for value in values]
        return levels[min(indices) : max(indices) + 1]


# An uninformed score has a pair accuracy of 0.5; 0.2 and 0.5 standard deviations are a small and a medium effect.
HEALTH: dict[str, Bound] = {
    "pair-accuracy": Bound("below", 0.6, 0.5),
    "group-length-correlation": Bound("beyond", 0.5, 0.8),
    "wrong-length-correlation": Bound("beyond", 0.5, 0.8),
    "repeats": Bound("above", 0.02, 0.1),
    "repeats-preferred": Bound("above", 0.2, 0.5),
    "truncation": Bound("above", 0.05, 0.2),
    "truncation-preferred": Bound("above", 0.2, 0.5),
    "duplicates": Bound("above", 0.5, 0.8),
}
"""The metrics that have bounds."""


def metrics(responses: Responses, *, seed: int = 0) -> dict[str, Estimate]:
    """Every metric of METRICS by name, with its interval. seed: of the resampling."""
    scores, outcomes = responses.scores, responses.outcomes
    predicted = _sigmoid(scores)
    groups = GroupedSamples(responses.group)
    statistics = {
        **_outcome_statistics(responses, groups, predicted),
        **_length_statistics(responses, groups),
        **_repeat_statistics(responses, groups),
    }
    estimates = estimate(statistics, seed=seed)
    error, _ = calibration(predicted, outcomes)
    estimates["calibration-error"] = Estimate(error, groups=len(groups.size), items=len(scores))
    return {name: estimates[name] for name in METRICS}


def _outcome_statistics(responses: Responses, groups: GroupedSamples, predicted: np.ndarray) -> dict[str, Statistic]:
    scores, outcomes, right = responses.scores, responses.outcomes, responses.right
    lowest = responses.last_lowest  # (B,), NaN where it is not known
    counts = count_pairs(scores, outcomes, responses.group)
    correct, pairs = counts.correct, counts.pairs
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracies = np.where(pairs > 0, correct / pairs, 0.0)  # (G,)
    items = int(pairs.sum())
    return {
        "pair-accuracy": groups.ratio(correct, pairs, items=items, share=True),
        "group-auc": groups.ratio(accuracies, pairs > 0, items=items, share=True),
        "group-correlation": groups.correlation(
            groups.centre(scores), groups.centre(outcomes), which=(pairs > 0)[groups.index]
        ),
        "correlation": groups.correlation(scores, outcomes),
        "spearman": groups.correlation(ranks(scores), ranks(outcomes)),
        "auc": groups.auc(scores, right),
        "brier": groups.mean((predicted - outcomes) ** 2),
        "reward-right": groups.mean(scores, right),
        "reward-wrong": groups.mean(scores, ~right),
        "last-lowest": groups.mean(np.nan_to_num(lowest), ~np.isnan(lowest), share=True),
    }


def _length_statistics(responses: Responses, groups: GroupedSamples) -> dict[str, Statistic]:
    scores, lengths = responses.scores, responses.lengths.astype(np.float64)
    return {
        "length-correlation": groups.correlation(scores, lengths),
        "group-length-correlation": groups.correlation(groups.centre(scores), groups.centre(lengths)),
        "wrong-length-correlation": groups.correlation(scores, lengths, ~responses.right),
    }


def _repeat_statistics(responses: Responses, groups: GroupedSamples) -> dict[str, Statistic]:
    scores, copies = responses.scores, responses.copies()
    return {
        "repeats": groups.mean(responses.degenerate, share=True),
        "repeats-preferred": groups.contrast(scores, responses.degenerate),
        "duplicates": groups.mean(copies > 1, share=True),
        "distinct": groups.ratio(
            groups.sums(1 / copies) / groups.size, np.ones(len(groups.size)), items=len(scores), share=True
        ),
        "truncation": groups.mean(responses.truncated, share=True),
        "truncation-preferred": groups.contrast(scores, responses.truncated),
    }


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(scores, -LARGEST_EXPONENT, LARGEST_EXPONENT))))


def health(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """The verdict on each metric that has a bound and a value.

    verdict: `ok`, `watch` or `bad`. possible: the verdicts that its interval allows. The rest is the `Bound`.
    """
    verdicts: dict[str, dict[str, Any]] = {}
    for name, bound in HEALTH.items():
        value = metrics[name].value
        if value is not None:
            verdicts[name] = {
                "verdict": bound.verdict(value),
                "possible": bound.possible(metrics[name]),
                **asdict(bound),
            }
    return verdicts


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A group in which a wrong response has a higher score than a right one.

    gap: the highest score of a wrong response less the lowest of a right one, above 0.
    group: its number.
    accuracy: the share of its responses that are right.
    wrong: the index of that wrong response in `Responses`.
    right: the index of that right response.
    """

    gap: float
    group: int
    accuracy: float
    wrong: int
    right: int


def disagreements(responses: Responses, top: int) -> list[Disagreement]:
    """The groups in which score and outcome disagree, the largest gaps first; at most `top` of them."""
    best_wrong = _largest_of_groups(responses, ~responses.right, responses.scores)
    worst_right = _largest_of_groups(responses, responses.right, -responses.scores)
    size, right = (np.bincount(responses.group, weights=weights) for weights in (None, responses.right))
    gaps = []
    for group in best_wrong.keys() & worst_right.keys():
        gap = float(responses.scores[best_wrong[group]] - responses.scores[worst_right[group]])
        if gap > 0:
            accuracy = float(right[group] / size[group])
            gaps.append(Disagreement(gap, group, accuracy, best_wrong[group], worst_right[group]))
    return sorted(gaps, key=lambda disagreement: (-disagreement.gap, disagreement.wrong))[:top]


def _largest_of_groups(responses: Responses, which: np.ndarray, keys: np.ndarray) -> dict[int, int]:
    """By group, which of the selected responses has the largest key; the first of equal ones. which: (B,) bool."""
    rows = np.flatnonzero(which)
    rows = rows[np.lexsort((-rows, keys[rows], responses.group[rows]))]
    group = responses.group[rows]
    last = np.flatnonzero(np.diff(group, append=-1))
    return dict(zip(group[last].tolist(), rows[last].tolist(), strict=True))


def _summary(responses: Responses, which: np.ndarray) -> dict[str, Any]:
    """Of some of the responses: how many, how many are right, mean score, reward a token; None where there are none."""
    number, tokens = int(which.sum()), int(responses.lengths[which].sum())
    score = float(responses.scores[which].sum())
    return {
        "responses": number,
        "accuracy": float(responses.right[which].mean()) if number else None,
        "score": score / number if number else None,
        "reward_per_token": score / tokens if tokens else None,
    }


def by_length(responses: Responses) -> list[dict[str, Any]]:
    """Quarters of the responses, from the shortest to the longest: all of them, the right ones and the wrong ones.

    Responses of one length stay together, so that there may be fewer than four parts, of different sizes.
    """
    edges = np.unique(np.quantile(responses.lengths, [0.25, 0.5, 0.75]))
    quarter = np.searchsorted(edges, responses.lengths)  # (B,)
    parts = []
    for number in np.unique(quarter):
        which = quarter == number
        parts.append(
            {
                "tokens_from": int(responses.lengths[which].min()),
                "tokens_to": int(responses.lengths[which].max()),
                **_summary(responses, which),
                "right": _summary(responses, which & responses.right),
                "wrong": _summary(responses, which & ~responses.right),
            }
        )
    return parts


def by_kind(responses: Responses) -> dict[str, dict[str, Any]]:
    """Degenerate, truncated and duplicate responses, each beside the others."""
    kinds = {
        "degenerate": responses.degenerate,
        "truncated": responses.truncated,
        "duplicate": responses.copies() > 1,
    }
    return {
        name: {"these": _summary(responses, which), "others": _summary(responses, ~which)}
        for name, which in kinds.items()
    }


def audit_responses(responses: Responses, *, seed: int = 0, top: int = 5) -> dict[str, Any]:
    """The whole audit as plain values, as `primecli audit --json` prints it; None where there is nothing to compute.

    metrics: by name, each `Estimate` as a dict, and its unit.
    calibration: the bins of `calibration`.
    health, by_length, by_kind, disagreements: as the functions of these names; a response is given by shard and row.
    """
    estimates = metrics(responses, seed=seed)
    _, bins = calibration(_sigmoid(responses.scores), responses.outcomes)
    return {
        "responses": len(responses),
        "ungraded": responses.ungraded,
        "groups": len(np.unique(responses.group)),
        "metrics": {name: {**asdict(value), "unit": UNITS.get(name, "responses")} for name, value in estimates.items()},
        "health": health(estimates),
        "calibration": [asdict(filled) for filled in bins],
        "by_length": by_length(responses),
        "by_kind": by_kind(responses),
        "disagreements": _described(responses, disagreements(responses, top)),
    }


def _described(responses: Responses, found: Sequence[Disagreement]) -> list[dict[str, Any]]:
    prompts = []
    for disagreement in found:
        path = responses.shards[responses.shard[disagreement.wrong]].path
        prompts.append(str(read_row(path, int(responses.row[disagreement.wrong]), [schema.PROMPT])[schema.PROMPT]))
    return [_as_values(responses, *pair) for pair in zip(found, questions(prompts), strict=True)]


def _as_values(responses: Responses, disagreement: Disagreement, question: str) -> dict[str, Any]:
    def response(index: int) -> dict[str, Any]:
        return {
            "score": float(responses.scores[index]),
            "outcome": float(responses.outcomes[index]),
            "shard": str(responses.shards[responses.shard[index]].path),
            "row": int(responses.row[index]),
        }

    question = " ".join(question.split())
    return {
        "group_id": responses.group_ids[disagreement.group],
        "prompt": question if len(question) <= QUESTION_CHARACTERS else f"{question[:QUESTION_CHARACTERS]}…",
        "accuracy": disagreement.accuracy,
        "gap": disagreement.gap,
        "wrong": response(disagreement.wrong),
        "right": response(disagreement.right),
    }
