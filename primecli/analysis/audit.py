"""Is the process reward still worth optimising: what of it follows the outcome, and what follows something else.

A response's score is the sum of its process rewards. `audit_responses` gives everything as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from primecli.analysis.estimates import Estimate, Groups, Statistic, calibration, estimate, ranks
from primecli.analysis.responses import LONG_RUN, LOOPED, MUCH_REPEATED, NGRAM, Responses
from primecli.shards import schema
from primecli.shards.streaming import read_row

PROMPT_CHARACTERS = 60

METRICS: dict[str, str] = {
    "pair-accuracy": "pairs of a better and a worse response of one group that the score orders rightly, a tie half",
    "group-auc": "the same, as the mean of the groups' own: each group counts once, whatever its pairs",
    "group-correlation": "of score and outcome, each less its group's mean, in groups of more than one outcome",
    "correlation": "of score and outcome, over the batch",
    "spearman": "of the ranks of score and outcome, over the batch",
    "auc": "that a right response of the batch scores higher than a wrong one, a tie half",
    "calibration-error": "mean |predicted - observed| of sigmoid(score), over ten bins",
    "brier": "mean squared error of sigmoid(score)",
    "reward-right": "mean score of right responses",
    "reward-wrong": "mean score of wrong responses",
    "length-correlation": "of score and length in tokens, over the batch",
    "group-length-correlation": "of score and length, each less its group's mean",
    "wrong-length-correlation": "of score and length among wrong responses",
    "repeats": f"share of responses with {MUCH_REPEATED:.0%} of their token {NGRAM}-grams repeated, or {LOOPED:.0%} in "
    f"one stretch, or a token {LONG_RUN} times in a row",
    "repeats-preferred": "their mean score less that of the rest of their group, in standard deviations",
    "duplicates": "share of responses whose very tokens another of their group has",
    "distinct": "distinct responses of a group by its responses, mean over groups",
    "truncation": "share of responses cut at their length limit",
    "truncation-preferred": "their mean score less that of the rest of their group, in standard deviations",
}
SECTIONS = {"outcome": "pair-accuracy", "length": "length-correlation", "repeats": "repeats"}
"""What a part of METRICS is about, and the metric that it starts with."""
UNITS = {"pair-accuracy": "pairs", "group-auc": "pairs"}
"""What a metric is over, where that is not responses."""


@dataclass(frozen=True, slots=True)
class Bound:
    """From where on a metric is to be watched, and is bad. side: above, below, or beyond (in absolute value)."""

    side: str
    watch: float
    bad: float

    def verdict(self, value: float) -> str:
        """`ok`, `watch` or `bad`."""
        sign = -1 if self.side == "below" else 1
        height = abs(value) if self.side == "beyond" else value
        return "bad" if sign * height > sign * self.bad else "watch" if sign * height > sign * self.watch else "ok"

    def possible(self, found: Estimate) -> list[str]:
        """The verdicts that the interval holds, from ok to bad; that of the value alone where there is no interval."""
        values = [value for value in (found.value, found.low, found.high) if value is not None]
        if self.side == "beyond" and min(values) <= 0 <= max(values):
            values.append(0.0)
        levels = ("ok", "watch", "bad")
        among = [levels.index(self.verdict(value)) for value in values]
        return list(levels[min(among) : max(among) + 1])


# 0.5 is what a score that knows nothing comes to; 0.2 and 0.5 standard deviations are a small and a middling effect.
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


def metrics(responses: Responses, *, seed: int = 0) -> dict[str, Estimate]:
    """Every metric by name, as METRICS says, with its interval."""
    scores, outcomes, right = responses.scores, responses.outcomes, responses.right
    lengths = responses.lengths.astype(np.float64)
    predicted = _sigmoid(scores)
    groups = Groups(responses.group)
    ordered, pairs = groups.pairs(scores, outcomes)
    copies = responses.copies()
    items = int(pairs.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(pairs > 0, ordered / pairs, 0.0)
    statistics: dict[str, Statistic] = {
        "pair-accuracy": groups.ratio(ordered, pairs, items=items, share=True),
        "group-auc": groups.ratio(own, pairs > 0, items=items, share=True),
        "group-correlation": groups.correlation(
            groups.centre(scores), groups.centre(outcomes), (pairs > 0)[groups.number]
        ),
        "correlation": groups.correlation(scores, outcomes),
        "spearman": groups.correlation(ranks(scores), ranks(outcomes)),
        "auc": groups.auc(scores, right),
        "brier": groups.mean((predicted - outcomes) ** 2),
        "reward-right": groups.mean(scores, right),
        "reward-wrong": groups.mean(scores, ~right),
        "length-correlation": groups.correlation(scores, lengths),
        "group-length-correlation": groups.correlation(groups.centre(scores), groups.centre(lengths)),
        "wrong-length-correlation": groups.correlation(scores, lengths, ~right),
        "repeats": groups.mean(responses.degenerate, share=True),
        "repeats-preferred": groups.contrast(scores, responses.degenerate),
        "duplicates": groups.mean(copies > 1, share=True),
        "distinct": groups.ratio(
            groups.sums(1 / copies) / groups.size, np.ones(len(groups.size)), items=len(scores), share=True
        ),
        "truncation": groups.mean(responses.truncated, share=True),
        "truncation-preferred": groups.contrast(scores, responses.truncated),
    }
    found = estimate(statistics, seed=seed)
    error, _ = calibration(predicted, outcomes)
    found["calibration-error"] = Estimate(error, groups=len(groups.size), items=len(scores))
    return {name: found[name] for name in METRICS}


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(scores, -500, 500))))


def health(found: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """For each metric that has a bound and a value: `ok`, `watch` or `bad`, the bound, and what the interval allows."""
    verdicts: dict[str, dict[str, Any]] = {}
    for name, bound in HEALTH.items():
        value = found[name].value
        if value is not None:
            verdicts[name] = {
                "verdict": bound.verdict(value),
                "possible": bound.possible(found[name]),
                **asdict(bound),
            }
    return verdicts


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A group in which a wrong response has a higher score than a right one. wrong, right: numbers of the responses."""

    gap: float
    group: int
    accuracy: float
    wrong: int
    right: int


def disagreements(responses: Responses, top: int) -> list[Disagreement]:
    """The groups where score and outcome disagree most, the strongest first.

    The measure is the highest score of a wrong response less the lowest of a right one; groups in which it is above 0.
    """
    best_wrong = _last_of_groups(responses, ~responses.right, responses.scores)
    worst_right = _last_of_groups(responses, responses.right, -responses.scores)
    size, right = (np.bincount(responses.group, weights=weights) for weights in (None, responses.right))
    found = []
    for group in best_wrong.keys() & worst_right.keys():
        wrong, good = best_wrong[group], worst_right[group]
        gap = float(responses.scores[wrong] - responses.scores[good])
        if gap > 0:
            found.append(Disagreement(gap, group, float(right[group] / size[group]), wrong, good))
    return sorted(found, key=lambda one: (-one.gap, one.wrong))[:top]


def _last_of_groups(responses: Responses, which: np.ndarray, keys: np.ndarray) -> dict[int, int]:
    """By group, which of the responses that are meant has the largest key; the first of equal ones."""
    rows = np.flatnonzero(which)
    rows = rows[np.lexsort((-rows, keys[rows], responses.group[rows]))]
    group = responses.group[rows]
    last = np.flatnonzero(np.diff(group, append=-1))
    return dict(zip(group[last].tolist(), rows[last].tolist(), strict=True))


def _part(responses: Responses, which: np.ndarray) -> dict[str, Any]:
    """Some of the responses: how many, how many are right, mean score, reward a token; None where there are none."""
    number, tokens = int(which.sum()), int(responses.lengths[which].sum())
    score = float(responses.scores[which].sum())
    return {
        "responses": number,
        "accuracy": float(responses.right[which].mean()) if number else None,
        "score": score / number if number else None,
        "reward_per_token": score / tokens if tokens else None,
    }


def by_length(responses: Responses) -> list[dict[str, Any]]:
    """By quarter of the responses, from the shortest to the longest: all, the right ones and the wrong ones.

    Responses of one length stand together, so that there may be fewer than four parts, of different sizes.
    """
    edges = np.unique(np.quantile(responses.lengths, [0.25, 0.5, 0.75]))
    place = np.searchsorted(edges, responses.lengths)
    quarters = []
    for part in np.unique(place):
        which = place == part
        quarters.append(
            {
                "tokens_from": int(responses.lengths[which].min()),
                "tokens_to": int(responses.lengths[which].max()),
                **_part(responses, which),
                "right": _part(responses, which & responses.right),
                "wrong": _part(responses, which & ~responses.right),
            }
        )
    return quarters


def by_kind(responses: Responses) -> dict[str, dict[str, Any]]:
    """Degenerate, truncated and duplicate responses, each beside the others."""
    kinds = {
        "degenerate": responses.degenerate,
        "truncated": responses.truncated,
        "duplicate": responses.copies() > 1,
    }
    return {
        name: {"these": _part(responses, which), "others": _part(responses, ~which)} for name, which in kinds.items()
    }


def audit_responses(responses: Responses, *, seed: int = 0, top: int = 5) -> dict[str, Any]:
    """The whole audit as plain values, as `primecli audit --json` prints it; None where there is nothing to compute.

    metrics: by name, each `Estimate` as a dict. health: as `health`. calibration: the bins of `calibration`.
    by_length, by_kind, disagreements: as the functions of these names; a response is said by its shard and row.
    """
    found = metrics(responses, seed=seed)
    _, bins = calibration(_sigmoid(responses.scores), responses.outcomes)
    return {
        "responses": len(responses),
        "ungraded": responses.ungraded,
        "groups": len(np.unique(responses.group)),
        "metrics": {name: {**asdict(one), "unit": UNITS.get(name, "responses")} for name, one in found.items()},
        "health": health(found),
        "calibration": [asdict(one) for one in bins],
        "by_length": by_length(responses),
        "by_kind": by_kind(responses),
        "disagreements": [_described(responses, one) for one in disagreements(responses, top)],
    }


def _described(responses: Responses, found: Disagreement) -> dict[str, Any]:
    def response(number: int) -> dict[str, Any]:
        path = responses.parts[responses.shard[number]].path
        return {
            "score": float(responses.scores[number]),
            "outcome": float(responses.outcomes[number]),
            "shard": str(path),
            "row": int(responses.row[number]),
        }

    part = responses.parts[responses.shard[found.wrong]]
    prompt = " ".join(str(read_row(part.path, int(responses.row[found.wrong]), [schema.PROMPT])[schema.PROMPT]).split())
    return {
        "group_id": responses.group_ids[found.group],
        "prompt": prompt if len(prompt) <= PROMPT_CHARACTERS else f"…{prompt[-PROMPT_CHARACTERS:]}",
        "accuracy": found.accuracy,
        "gap": found.gap,
        "wrong": response(found.wrong),
        "right": response(found.right),
    }
