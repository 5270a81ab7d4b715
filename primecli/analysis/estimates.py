"""Numbers with 95% intervals, from samples that come in groups. Pure NumPy; knows nothing of rollouts.

Samples of one prompt are not independent, so whole groups are resampled. A statistic is a function of how often each
group counts: with every group once it is the value, with groups drawn again and again it is what the interval is of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RESAMPLES = 1000
LEAST_GROUPS = 8  # resting on fewer, quantiles over resampled groups say little; shares have an interval at any number
Z95 = 1.959964  # the normal distribution's 97.5% point
SPREAD_FLOOR = 1e-12  # of the mean square: less is rounding, not variation


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95% interval.

    value: None where there is nothing to compute it from. low, high: None where it rests on too few groups.
    groups: how many have a say in it. items: the responses or pairs that it is over.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    groups: int = 0
    items: int = 0


@dataclass(frozen=True, slots=True)
class Statistic:
    """What is to be estimated.

    number: from (G,) counts of the groups to the number; NaN where it is not defined.
    counts: (G,) bool, the groups that have a say. items: as in `Estimate`.
    share: it is a share of something, within 0 and 1, so that its interval is one of a share.
    rests_on: how many groups it rests on, where they weigh differently; None is all that have a say.
    """

    number: Callable[[np.ndarray], float]
    counts: np.ndarray
    items: int
    share: bool = False
    rests_on: float | None = None


def estimate(statistics: Mapping[str, Statistic], *, seed: int, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """All statistics of the same G groups, from the same draws; memory does not grow with `resamples`."""
    names = list(statistics)
    if not names:
        return {}
    groups = len(statistics[names[0]].counts)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = np.full((len(names), resamples), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {name: float(statistics[name].number(np.ones(groups))) for name in names}
        for draw in range(resamples):
            counts = np.bincount(generator.integers(groups, size=groups), minlength=groups).astype(np.float64)
            for place, name in enumerate(names):
                drawn[place, draw] = statistics[name].number(counts)
    return {name: _with_interval(values[name], drawn[place], statistics[name]) for place, name in enumerate(names)}


def _with_interval(value: float, drawn: np.ndarray, statistic: Statistic) -> Estimate:
    groups = int(statistic.counts.sum())
    if not np.isfinite(value):
        return Estimate(None)
    drawn = drawn[np.isfinite(drawn)]
    if statistic.share:
        low, high = wilson(value, _effective_number(value, drawn, groups, statistic.items))
        return Estimate(value, low, high, groups, statistic.items)
    if (groups if statistic.rests_on is None else statistic.rests_on) < LEAST_GROUPS or not len(drawn):
        return Estimate(value, None, None, groups, statistic.items)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), groups, statistic.items)


def _effective_number(share: float, drawn: np.ndarray, groups: int, items: int) -> float:
    """How many independent trials a share with this spread over resampled groups is worth, at most `items`.

    Where nothing varies (all right, or one group) each group counts as one trial: resampling would call that certain.
    """
    spread = float(drawn.var()) if len(drawn) else 0.0
    if spread <= SPREAD_FLOOR or groups < 2 or not 0 < share < 1:
        return float(max(groups, 1))
    spread *= groups / (groups - 1)  # resampling understates the variance of a mean by that
    return min(max(share * (1 - share) / spread, 1.0), float(max(items, 1)))


def wilson(share: float, number: float) -> tuple[float, float]:
    """The 95% interval of a share of `number` independent trials (Wilson, 1927): also at 0 and 1 it has a width.

    >>> [round(bound, 3) for bound in wilson(1.0, 10)]
    [0.722, 1.0]
    """
    square = Z95**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = Z95 / (1 + square / number) * np.sqrt(share * (1 - share) / number + square / (4 * number**2))
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


class Groups:
    """Statistics of B samples, by the group that each is of.

    group: (B,) integers, any. Values are (B,); `which` is (B,) bool, the samples that are meant.
    """

    def __init__(self, group: np.ndarray) -> None:
        _, self.number = np.unique(group, return_inverse=True)
        self.size = np.bincount(self.number).astype(np.float64)  # (G,)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(G,): the values summed by group."""
        return np.bincount(self.number, weights=values, minlength=len(self.size))

    def centre(self, values: np.ndarray) -> np.ndarray:
        """The values less their group's mean; exactly 0 where that is all rounding."""
        centred = values - (self.sums(values) / self.size)[self.number]
        largest = np.abs(values).max(initial=0.0)
        return np.where(np.abs(centred) <= SPREAD_FLOOR * largest, 0.0, centred)

    def mean(self, values: np.ndarray, which: np.ndarray | None = None, *, share: bool = False) -> Statistic:
        """The mean of the values over the samples that are meant."""
        which = np.ones(len(values), dtype=bool) if which is None else which
        return self.ratio(self.sums(values * which), self.sums(which), items=int(which.sum()), share=share)

    def ratio(self, top: np.ndarray, bottom: np.ndarray, *, items: int, share: bool = False) -> Statistic:
        """The sum of `top` by that of `bottom`, (G,) each, over groups."""
        return self._of_sums([top, bottom], lambda sums: sums[0] / sums[1], bottom > 0, items, share=share)

    def correlation(self, first: np.ndarray, second: np.ndarray, which: np.ndarray | None = None) -> Statistic:
        """Pearson's correlation over the samples that are meant; NaN where one of the two does not vary."""
        which = np.ones(len(first), dtype=bool) if which is None else which
        x, y = (np.where(which, self._standard(values, which), 0.0) for values in (first, second))
        parts = [self.sums(part) for part in (which, x, y, x * x, y * y, x * y)]
        counts = (parts[3] > 0) & (parts[4] > 0)
        rests_on = min(_kish(parts[3]), _kish(parts[4]))  # one odd length among equal ones is one group's word
        return replace(self._of_sums(parts, _pearson, counts, int(which.sum())), rests_on=rests_on)

    def _standard(self, values: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Less their mean, and of unit size: a correlation does not mind, and sums of squares lose no digits."""
        meant = values[which]
        if not len(meant):
            return values
        shifted = values - meant.mean()
        largest = np.abs(shifted[which]).max()
        return shifted / largest if largest > SPREAD_FLOOR * np.abs(meant).max() else np.zeros_like(values)

    def contrast(self, values: np.ndarray, which: np.ndarray) -> Statistic:
        """How much higher the values of some samples are than those of the rest of their group, in standard deviations.

        The mean, over groups that hold both, of mean(which) - mean(rest), divided by the standard deviation of the
        values within all groups. NaN where no group holds both.
        """
        inside = self.sums(which)
        both = (inside > 0) & (inside < self.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = self.sums(values * which) / inside - self.sums(values * ~which) / (self.size - inside)
        squares = self.sums(self.centre(values) ** 2)
        return self._of_sums(
            [np.where(both, difference, 0.0), both, squares, self.size],
            lambda sums: sums[0] / sums[1] / np.sqrt(sums[2] / sums[3]) if sums[2] > 0 else np.nan,
            both,
            int(inside[both].sum()),
        )

    def _of_sums(
        self,
        parts: Sequence[np.ndarray],
        number: Callable[[np.ndarray], Any],
        counts: np.ndarray,
        items: int,
        *,
        share: bool = False,
    ) -> Statistic:
        stacked = np.stack([np.asarray(part, dtype=np.float64) for part in parts])  # (k, G)
        return Statistic(lambda weights: float(number(stacked @ weights)), counts, items, share)

    def auc(self, scores: np.ndarray, right: np.ndarray) -> Statistic:
        """The chance that one of `right` scores higher than one of the others, whatever their groups; a tie is half."""
        order = np.argsort(scores, kind="stable")
        number, label = self.number[order], right[order]
        starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0]))  # of equal scores

        def area(weights: np.ndarray) -> float:
            weight = weights[number]
            good = np.add.reduceat(np.where(label, weight, 0.0), starts)
            poor = np.add.reduceat(np.where(label, 0.0, weight), starts)
            return float((good * (np.cumsum(poor) - poor / 2)).sum() / (good.sum() * poor.sum()))

        return Statistic(area, np.ones(len(self.size), dtype=bool), len(scores), share=True)

    def pairs(self, scores: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(G,) each: pairs of a better and a worse sample of one group that `scores` order rightly, and all such pairs.

        A tie of the scores counts half.
        """
        ordered, every = np.zeros(len(self.size)), np.zeros(len(self.size))
        rows = np.argsort(self.number, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self.size)]).astype(np.int64)
        for size in np.unique(self.size).astype(np.int64):
            of_size = np.flatnonzero(self.size == size)
            for some in np.array_split(of_size, max(len(of_size) * size * size // 1_000_000, 1)):
                members = rows[starts[some][:, None] + np.arange(size)]  # (some, size)
                s, y = scores[members], outcomes[members]
                better = y[:, :, None] > y[:, None, :]
                sign = np.sign(s[:, :, None] - s[:, None, :])
                ordered[some] = (better * (1 + sign) / 2).sum((1, 2))
                every[some] = better.sum((1, 2))
        return ordered, every


def _kish(weights: np.ndarray) -> float:
    """How many groups of equal weight these amount to: (sum w)^2 / sum w^2 (Kish, 1965)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def _pearson(sums: np.ndarray) -> float:
    """From the sums of 1, x, y, x^2, y^2 and xy."""
    number, x, y, xx, yy, xy = (float(part) for part in sums)
    if not number:
        return np.nan
    spread_x, spread_y = xx - x * x / number, yy - y * y / number
    if spread_x <= SPREAD_FLOOR * xx or spread_y <= SPREAD_FLOOR * yy:
        return np.nan
    return float(np.clip((xy - x * y / number) / np.sqrt(spread_x * spread_y), -1.0, 1.0))


def ranks(values: np.ndarray) -> np.ndarray:
    """(B,): from 1; equal values have the mean of their ranks.

    >>> ranks(np.array([10.0, 30.0, 10.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(middle[inverse], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose prediction is in [start, end): their number, the mean prediction and the mean outcome."""

    start: float
    end: float
    items: int
    predicted: float
    observed: float


def calibration(predicted: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> tuple[float, list[Bin]]:
    """Expected calibration error, and the bins that hold samples: equal widths over [0, 1].

    The error is the mean over samples of their bin's |predicted - observed| (Guo et al., arXiv 1706.04599). It has no
    interval: it is never below 0, and of few samples it is large for a calibrated prediction too.

    predicted, outcomes: (B,), within 0 and 1.

    >>> calibration(np.array([0.5, 0.5]), np.array([1.0, 1.0]))
    (0.5, [Bin(start=0.5, end=0.6, items=2, predicted=0.5, observed=1.0)])
    """
    place = np.minimum((predicted * bins).astype(np.int64), bins - 1)
    items = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (predicted, outcomes)]
    held = np.flatnonzero(items).tolist()
    found = [
        Bin(at / bins, (at + 1) / bins, int(items[at]), float(sums[0][at] / items[at]), float(sums[1][at] / items[at]))
        for at in held
    ]
    return float(np.abs(sums[0] - sums[1]).sum() / len(predicted)), found
