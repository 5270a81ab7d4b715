"""Is the process reward still worth optimising: what of it follows the outcome, and what follows something else.

A response's score is the sum of its process rewards. Everything here is NumPy over one number a response: token lists
are reduced shard by shard and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from primecli import schema, shards
from primecli.inputs import Shard

NEEDS = (
    schema.GROUP_ID,
    schema.SAMPLE_INDEX,
    schema.PROMPT,
    schema.RESPONSE_IDS,
    schema.FINISH_REASON,
    schema.OUTCOME_REWARD,
    schema.PROCESS_REWARDS,
)
NGRAM = 4
DEGENERATE_REPEATS = 0.8  # share of repeated n-grams from which a response counts as degenerate
LONGEST_RUN = 30  # … or so many of one token in a row
HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, with bits all over: an n-gram's hash is a polynomial in it, modulo 2^64
CALIBRATION_BINS = 10
RESAMPLES = 400
PROMPT_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Responses:
    """B graded responses, one number each.

    scores, outcomes: sum of process rewards, outcome reward. lengths: tokens. group: number of the group, from 0.
    repeats: share of token 4-grams that stood in the response before. run: longest run of one token. duplicate: whether
    another response of the group has the same tokens. place: number of the shard and of the row in it.
    """

    scores: np.ndarray
    outcomes: np.ndarray
    lengths: np.ndarray
    group: np.ndarray
    truncated: np.ndarray
    repeats: np.ndarray
    run: np.ndarray
    duplicate: np.ndarray
    place: np.ndarray
    group_ids: list[str]
    prompts: list[str]
    paths: list[Path]
    ungraded: int

    @property
    def degenerate(self) -> np.ndarray:
        """(B,) bool: responses that say the same again and again."""
        return (self.repeats >= DEGENERATE_REPEATS) | (self.run >= LONGEST_RUN)


def collect(parts: Iterable[Shard]) -> Responses:
    """Reads what the audit needs, a shard at a time. Responses without an outcome reward are counted and left out."""
    found: dict[str, list[np.ndarray]] = {}
    group_ids: list[str] = []
    prompts: list[str] = []
    paths: list[Path] = []
    ungraded = 0
    for part in parts:
        shards.require_columns(part.path, part.footer.columns, NEEDS)
        table = shards.read_table(part.path, list(NEEDS))
        columns, keys, texts = _reduce(table)
        columns["group"] += len(group_ids)
        columns["place"] = np.stack([np.full(table.num_rows, len(paths)), np.arange(table.num_rows)], axis=1)
        graded = ~np.isnan(columns["outcomes"])
        ungraded += int((~graded).sum())
        for name, values in columns.items():
            found.setdefault(name, []).append(values[graded])
        group_ids += keys
        prompts += texts
        paths.append(part.path)
    return Responses(
        **{name: np.concatenate(pieces) for name, pieces in found.items()},
        group_ids=group_ids,
        prompts=prompts,
        paths=paths,
        ungraded=ungraded,
    )


def _reduce(table: Any) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """One number a row from a shard's columns, with the ids and the shortened prompts of its groups."""
    rewards, lengths = shards.flat_column(table, schema.PROCESS_REWARDS)
    ids, _ = shards.flat_column(table, schema.RESPONSE_IDS)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    keys, first, group = np.unique(
        np.asarray(table[schema.GROUP_ID].to_pylist()), return_index=True, return_inverse=True
    )
    order = np.argsort(first)  # groups are numbered as they come, however they are cut into shards
    keys, first, group = keys[order], first[order], np.argsort(order)[group]
    rows = [ids[start:end] for start, end in pairwise(starts)]
    texts = table[schema.PROMPT].take(first).to_pylist()
    seen: dict[tuple[int, bytes], int] = {}
    names = [(int(number), row.tobytes()) for number, row in zip(group, rows, strict=True)]
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    totals = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    columns = {
        "scores": totals[starts[1:]] - totals[starts[:-1]],
        "outcomes": table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64),
        "lengths": lengths.astype(np.float64),
        "group": group.astype(np.int64),
        "truncated": np.asarray(table[schema.FINISH_REASON].to_pylist()) == "length",
        "repeats": np.array([repeated_ngrams(row) for row in rows]),
        "run": np.array([longest_run(row) for row in rows]),
        "duplicate": np.array([seen[name] > 1 for name in names]),
    }
    return columns, keys.tolist(), [" ".join(text.split())[-PROMPT_CHARACTERS:] for text in texts]


def repeated_ngrams(ids: np.ndarray, size: int = NGRAM) -> float:
    """Share of a response's token n-grams that stood in it before; 0 for a response that has no two of them.

    >>> repeated_ngrams(np.array([1, 1, 1, 1, 1]), size=2)
    0.75
    """
    if len(ids) <= size:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), size)
    factors = np.array([HASH_FACTOR**power % 2**64 for power in range(size)], dtype=np.uint64)
    return 1 - len(np.unique((grams * factors).sum(1, dtype=np.uint64))) / len(grams)


def longest_run(ids: np.ndarray) -> int:
    """How often one token stands in a row at most.

    >>> longest_run(np.array([1, 2, 2, 2, 1]))
    3
    """
    edges = np.flatnonzero(np.diff(ids)) + 1
    return int(np.diff(np.concatenate([[0], edges, [len(ids)]])).max()) if len(ids) else 0


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its 95% interval, by resampling groups; None where there is nothing to compute it from."""

    value: float | None
    low: float | None = None
    high: float | None = None


def metrics(responses: Responses, *, seed: int = 0) -> dict[str, Metric]:
    """Every metric of the audit by name: see `METRICS` for what each means."""
    scores, outcomes, lengths = responses.scores, responses.outcomes, responses.lengths
    wrong, right = outcomes < 0.5, outcomes >= 0.5
    degenerate = responses.degenerate
    within = _Within(responses.group, seed)
    predicted = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    return {
        "pair-accuracy": within.pair_accuracy(scores, outcomes),
        "correlation": within.correlation(scores, outcomes),
        "group-correlation": within.correlation(within.centre(scores), within.centre(outcomes)),
        "auc": Metric(auc(scores, right)),
        "calibration-error": Metric(_calibration(predicted, outcomes)),
        "brier": Metric(float(np.mean((predicted - outcomes) ** 2))),
        "reward-right": Metric(_mean(scores[right])),
        "reward-wrong": Metric(_mean(scores[wrong])),
        "length-correlation": within.correlation(scores, lengths),
        "group-length-correlation": within.correlation(within.centre(scores), within.centre(lengths)),
        "wrong-length-correlation": _Within(responses.group[wrong], seed).correlation(scores[wrong], lengths[wrong]),
        "repeats": Metric(float(degenerate.mean())),
        "repeats-preferred": Metric(_difference(within.centre(scores), degenerate)),
        "duplicates": Metric(float(responses.duplicate.mean())),
        "truncation": Metric(float(responses.truncated.mean())),
        "truncation-preferred": Metric(_difference(within.centre(scores), responses.truncated)),
    }


METRICS = {
    "pair-accuracy": "pairs of a better and a worse response of one group that the score orders rightly, a tie half",
    "correlation": "of score and outcome, over the batch",
    "group-correlation": "of score and outcome, each less its group's mean",
    "auc": "that a right response of the batch has a higher score than a wrong one, a tie half",
    "calibration-error": "mean |predicted - observed| of sigmoid(score), over ten bins",
    "brier": "mean squared error of sigmoid(score)",
    "reward-right": "mean score of right responses",
    "reward-wrong": "mean score of wrong responses",
    "length-correlation": "of score and length in tokens",
    "group-length-correlation": "of score and length, each less its group's mean",
    "wrong-length-correlation": "of score and length among wrong responses",
    "repeats": f"share of responses with {DEGENERATE_REPEATS:.0%} of their token 4-grams repeated, or a token "
    f"{LONGEST_RUN} times in a row",
    "repeats-preferred": "mean score of those less that of the others, each less its group's mean",
    "duplicates": "share of responses whose very tokens another of their group has",
    "truncation": "share of responses cut at their length limit",
    "truncation-preferred": "mean score of those less that of the others, each less its group's mean",
}

# name, is it worse above the bound, watch, bad
HEALTH: tuple[tuple[str, bool, float, float], ...] = (
    ("pair-accuracy", False, 0.6, 0.5),
    ("group-length-correlation", True, 0.5, 0.8),
    ("repeats", True, 0.02, 0.1),
    ("repeats-preferred", True, 0.0, 0.1),
    ("truncation", True, 0.05, 0.2),
    ("truncation-preferred", True, 0.0, 0.1),
    ("duplicates", True, 0.5, 0.8),
)


def health(found: dict[str, Metric]) -> dict[str, str]:
    """`ok`, `watch` or `bad` for each metric that has a bound and a value."""
    verdicts = {}
    for name, above, watch, bad in HEALTH:
        value = found[name].value
        if value is not None:
            sign = 1 if above else -1
            verdicts[name] = "bad" if sign * value > sign * bad else "watch" if sign * value > sign * watch else "ok"
    return verdicts


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A group in which a wrong response has a higher score than a right one. rows: (shard, row) of either."""

    group_id: str
    prompt: str
    accuracy: float
    wrong_score: float
    right_score: float
    wrong_row: tuple[Path, int]
    right_row: tuple[Path, int]


def disagreements(responses: Responses, top: int) -> list[Disagreement]:
    """The groups where score and outcome disagree most: by the highest score of a wrong response less the lowest of a
    right one, where that is above 0."""
    found = []
    order = np.argsort(responses.group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(responses.group[order])) + 1):
        right = rows[responses.outcomes[rows] >= 0.5]
        wrong = rows[responses.outcomes[rows] < 0.5]
        if not len(right) or not len(wrong):
            continue
        worst = wrong[np.argmax(responses.scores[wrong])]
        best = right[np.argmin(responses.scores[right])]
        gap = float(responses.scores[worst] - responses.scores[best])
        if gap > 0:
            found.append((gap, int(worst), int(best), len(right) / len(rows)))
    found.sort(key=lambda item: (-item[0], item[1]))

    def row(number: int) -> tuple[Path, int]:
        shard, place = responses.place[number]
        return responses.paths[shard], int(place)

    return [
        Disagreement(
            responses.group_ids[responses.group[worst]],
            responses.prompts[responses.group[worst]],
            accuracy,
            float(responses.scores[worst]),
            float(responses.scores[best]),
            row(worst),
            row(best),
        )
        for _, worst, best, accuracy in found[:top]
    ]


def by_length(responses: Responses) -> list[dict[str, float]]:
    """By quarter of the responses, from the shortest to the longest: tokens, accuracy, mean score, reward a token."""
    order = np.argsort(responses.lengths, kind="stable")
    return [
        {
            "tokens_from": float(responses.lengths[part].min()),
            "tokens_to": float(responses.lengths[part].max()),
            "accuracy": float((responses.outcomes[part] >= 0.5).mean()),
            "score": float(responses.scores[part].mean()),
            "reward_per_token": float(responses.scores[part].sum() / max(responses.lengths[part].sum(), 1)),
        }
        for part in np.array_split(order, min(4, len(order)))
    ]


def auc(scores: np.ndarray, right: np.ndarray) -> float | None:
    """The probability that one of `right` scores higher than one of the others, a tie half; None without either.

    >>> auc(np.array([1.0, 2.0, 2.0]), np.array([False, True, False]))
    0.75
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of equal scores, from 1
    rank_sum = ranks[inverse][right].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _difference(values: np.ndarray, which: np.ndarray) -> float | None:
    return float(values[which].mean() - values[~which].mean()) if which.any() and not which.all() else None


def _calibration(predicted: np.ndarray, outcomes: np.ndarray) -> float:
    place = np.minimum((predicted * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(place, weights=predicted - outcomes, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(predicted))


class _Within:
    """Statistics whose intervals come from resampling whole groups: samples of one prompt are not independent."""

    def __init__(self, group: np.ndarray, seed: int) -> None:
        _, self.number = np.unique(group, return_inverse=True)
        self.groups = int(self.number.max()) + 1 if len(group) else 0
        self.seed = seed

    def centre(self, values: np.ndarray) -> np.ndarray:
        """The values less their group's mean."""
        means = self._sums(values) / np.bincount(self.number, minlength=self.groups)
        return values - means[self.number]

    def correlation(self, first: np.ndarray, second: np.ndarray) -> Metric:
        """Pearson's correlation."""
        parts = [self._sums(part) for part in (np.ones_like(first), first, second, first**2, second**2, first * second)]
        return self._resampled(parts, _pearson)

    def pair_accuracy(self, scores: np.ndarray, outcomes: np.ndarray) -> Metric:
        """The share of pairs within groups that are ordered rightly."""
        right, pairs = np.zeros(self.groups), np.zeros(self.groups)
        order = np.argsort(self.number, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(self.number[order])) + 1):
            if not len(rows):
                continue
            better = outcomes[rows, None] > outcomes[None, rows]
            ordered = (1 + np.sign(scores[rows, None] - scores[None, rows])) / 2
            right[self.number[rows[0]]] = (better * ordered).sum()
            pairs[self.number[rows[0]]] = better.sum()
        return self._resampled([right, pairs], lambda sums: sums[0] / sums[1])

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.number, weights=values, minlength=self.groups)

    def _resampled(self, parts: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray]) -> Metric:
        if not self.groups:
            return Metric(None)
        sums = np.stack(parts)  # (statistics, groups)
        generator = np.random.Generator(np.random.PCG64(self.seed))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(sums.sum(1)))
            if not np.isfinite(value):
                return Metric(None)
            drawn = generator.multinomial(self.groups, np.full(self.groups, 1 / self.groups), size=RESAMPLES)
            resampled = statistic(sums @ drawn.T)
        resampled = resampled[np.isfinite(resampled)]
        low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (None, None)
        return Metric(value, None if low is None else float(low), None if high is None else float(high))


def _pearson(sums: np.ndarray) -> np.ndarray:
    """From the sums of 1, x, y, x^2, y^2 and xy: (6, …) to (…). NaN where one of them does not vary."""
    number, x, y, xx, yy, xy = sums
    spread_x, spread_y = xx / number - (x / number) ** 2, yy / number - (y / number) ** 2
    tiny = 1e-12
    varies = (spread_x > tiny * np.abs(xx / number)) & (spread_y > tiny * np.abs(yy / number))
    covariance = xy / number - x * y / number**2
    return np.where(varies, covariance / np.sqrt(np.where(varies, spread_x * spread_y, 1)), np.nan)
