"""Numbers with 95% intervals, from samples that come in groups. Pure NumPy; knows nothing of rollouts.

Samples of one prompt are not independent, so whole groups are resampled. A statistic is a function of how often each
group counts: with every group counted once it is the value; groups drawn with replacement give its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RESAMPLES = 1000
LEAST_GROUPS = 8  # quantiles over fewer resampled groups say little; shares have an interval at any number
Z95 = 1.959964  # the normal distribution's 97.5% point
SPREAD_FLOOR = 1e-12  # of the mean square: less is rounding, not variation


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95% interval.

    value: None where there is nothing to compute it from.
    low, high: ends of the interval; None where it rests on too few groups.
    groups: how many contribute to it.
    items: the responses or pairs that it is over.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    groups: int = 0
    items: int = 0


@dataclass(frozen=True, slots=True)
class Statistic:
    """What is to be estimated.

    compute: from how often each group counts, (G,) float64, to the number; NaN where it is not defined.
    contributing: (G,) bool, the groups that contribute to it.
    items: the responses or pairs that it is over.
    share: whether it is a share, within 0 and 1, whose interval must be within 0 and 1 too.
    rests_on: how many groups of equal weight it amounts to, where they weigh differently; None is all contributing.
    """

    compute: Callable[[np.ndarray], float]
    contributing: np.ndarray
    items: int
    share: bool = False
    rests_on: float | None = None


def estimate(statistics: Mapping[str, Statistic], *, seed: int, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """All statistics of the same G groups, from the same draws; memory does not grow with G times `resamples`."""
    if not statistics:
        return {}
    groups = len(next(iter(statistics.values())).contributing)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = {name: np.full(resamples, np.nan) for name in statistics}
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {name: float(statistic.compute(np.ones(groups))) for name, statistic in statistics.items()}
        for draw in range(resamples):
            counts = np.bincount(generator.integers(groups, size=groups), minlength=groups).astype(np.float64)
            for name, statistic in statistics.items():
                drawn[name][draw] = statistic.compute(counts)
    return {name: _with_interval(values[name], drawn[name], statistic) for name, statistic in statistics.items()}


def _with_interval(value: float, drawn: np.ndarray, statistic: Statistic) -> Estimate:
    """drawn: (resamples,) the statistic of resampled groups."""
    groups = int(statistic.contributing.sum())
    if not np.isfinite(value):
        return Estimate(None)
    drawn = drawn[np.isfinite(drawn)]
    if statistic.share:
        low, high = wilson(value, _effective_trials(value, drawn, groups, statistic.items))
        return Estimate(value, low, high, groups, statistic.items)
    rests_on = groups if statistic.rests_on is None else statistic.rests_on
    if rests_on < LEAST_GROUPS or not len(drawn):
        return Estimate(value, None, None, groups, statistic.items)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), groups, statistic.items)


def _effective_trials(share: float, drawn: np.ndarray, groups: int, items: int) -> float:
    """How many independent trials a share with this spread over resampled groups is worth, at most `items`.

    Where nothing varies (all are right, or there is one group) each group counts as one trial, since resampling would
    call such a share certain.
    """
    variance = float(drawn.var()) if len(drawn) else 0.0
    if variance <= SPREAD_FLOOR or groups < 2 or not 0 < share < 1:
        return float(max(groups, 1))
    variance *= groups / (groups - 1)  # resampling understates the variance of a mean by this factor
    return min(max(share * (1 - share) / variance, 1.0), float(max(items, 1)))


def wilson(share: float, number: float) -> tuple[float, float]:
    """The 95% interval of a share of `number` independent trials (Wilson, 1927): at 0 and 1 it has a width too.

    >>> [round(bound, 3) for bound in wilson(1.0, 10)]
    [0.722, 1.0]
    """
    square = Z95**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = Z95 / (1 + square / number) * np.sqrt(share * (1 - share) / number + square / (4 * number**2))
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


class GroupedSamples:
    """B samples in G groups, and the statistics of their values.

    Values are (B,) arrays in the order of the samples; `which` is (B,) bool, the samples that a statistic is over.

    index: (B,) the group of each sample, 0 to G - 1, in the order of the group's numbers.
    size: (G,) float64, the samples of each group.
    """

    def __init__(self, groups: np.ndarray) -> None:
        """groups: (B,) integers, the same for the samples of one group."""
        _, self.index = np.unique(groups, return_inverse=True)
        self.size = np.bincount(self.index).astype(np.float64)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(G,): the values summed by group."""
        return np.bincount(self.index, weights=values, minlength=len(self.size))

    def centre(self, values: np.ndarray) -> np.ndarray:
        """(B,): the values less their group's mean; exactly 0 where all that is left is rounding."""
        centred = values - (self.sums(values) / self.size)[self.index]
        largest = np.abs(values).max(initial=0.0)
        return np.where(np.abs(centred) <= SPREAD_FLOOR * largest, 0.0, centred)

    def mean(self, values: np.ndarray, which: np.ndarray | None = None, *, share: bool = False) -> Statistic:
        """The mean of the values."""
        which = np.ones(len(values), dtype=bool) if which is None else which
        return self.ratio(self.sums(values * which), self.sums(which), items=int(which.sum()), share=share)

    def ratio(self, top: np.ndarray, bottom: np.ndarray, *, items: int, share: bool = False) -> Statistic:
        """The sum of `top` over that of `bottom`, (G,) each."""
        return self._of_sums([top, bottom], lambda sums: sums[0] / sums[1], bottom > 0, items, share=share)

    def correlation(self, first: np.ndarray, second: np.ndarray, which: np.ndarray | None = None) -> Statistic:
        """Pearson's correlation; NaN where one of the two does not vary."""
        which = np.ones(len(first), dtype=bool) if which is None else which
        x, y = (np.where(which, self._standardised(values, which), 0.0) for values in (first, second))
        parts = [self.sums(part) for part in (which, x, y, x * x, y * y, x * y)]
        contributing = (parts[3] > 0) & (parts[4] > 0)
        # a single odd length among equal ones comes from one group, however many there are
        rests_on = min(_effective_groups(parts[3]), _effective_groups(parts[4]))
        return replace(self._of_sums(parts, _pearson, contributing, int(which.sum())), rests_on=rests_on)

    def _standardised(self, values: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Shifted by the mean and scaled to 1: the correlation is the same, and sums of squares lose no digits."""
        selected = values[which]
        if not len(selected):
            return values
        shifted = values - selected.mean()
        largest = np.abs(shifted[which]).max()
        return shifted / largest if largest > SPREAD_FLOOR * np.abs(selected).max() else np.zeros_like(values)

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
        compute: Callable[[np.ndarray], Any],
        contributing: np.ndarray,
        items: int,
        *,
        share: bool = False,
    ) -> Statistic:
        """A statistic that depends on the groups only through sums over them.

        parts: k arrays, (G,) each. compute: from their k sums to the number.
        """
        stacked = np.stack([np.asarray(part, dtype=np.float64) for part in parts])  # (k, G)
        return Statistic(lambda counts: float(compute(stacked @ counts)), contributing, items, share)

    def auc(self, scores: np.ndarray, right: np.ndarray) -> Statistic:
        """The chance that one of `right` scores higher than one of the others, whatever their groups; ties are half."""
        order = np.argsort(scores, kind="stable")
        group, is_right = self.index[order], right[order]
        starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0]))  # of runs of equal scores

        def area(counts: np.ndarray) -> float:
            weight = counts[group]
            above = np.add.reduceat(np.where(is_right, weight, 0.0), starts)
            below = np.add.reduceat(np.where(is_right, 0.0, weight), starts)
            return float((above * (np.cumsum(below) - below / 2)).sum() / (above.sum() * below.sum()))

        return Statistic(area, np.ones(len(self.size), dtype=bool), len(scores), share=True)


def _effective_groups(weights: np.ndarray) -> float:
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
    """(B,): from 1; equal values share the mean of their ranks.

    >>> ranks(np.array([10.0, 30.0, 10.0])).tolist()
    [1.5, 3.0, 1.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(middle[inverse], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose prediction is in [start, end).

    start, end: within 0 and 1; the last bin holds 1 too.
    items: how many samples.
    predicted: their mean prediction.
    observed: their mean outcome.
    """

    start: float
    end: float
    items: int
    predicted: float
    observed: float


def calibration(predicted: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> tuple[float, list[Bin]]:
    """Expected calibration error, and the bins that hold samples: equal widths over [0, 1].

    The error is the mean over samples of their bin's |predicted - observed| (Guo et al., arXiv 1706.04599). It has no
    interval: it is never below 0, and with few samples it is large for a calibrated prediction too.

    predicted, outcomes: (B,), within 0 and 1.

    >>> calibration(np.array([0.5, 0.5]), np.array([1.0, 1.0]))
    (0.5, [Bin(start=0.5, end=0.6, items=2, predicted=0.5, observed=1.0)])
    """
    bin_index = np.minimum((predicted * bins).astype(np.int64), bins - 1)
    items = np.bincount(bin_index, minlength=bins)
    sum_predicted, sum_observed = (
        np.bincount(bin_index, weights=values, minlength=bins) for values in (predicted, outcomes)
    )
    filled = [
        Bin(
            start=index / bins,
            end=(index + 1) / bins,
            items=int(items[index]),
            predicted=float(sum_predicted[index] / items[index]),
            observed=float(sum_observed[index] / items[index]),
        )
        for index in np.flatnonzero(items).tolist()
    ]
    return float(np.abs(sum_predicted - sum_observed).sum() / len(predicted)), filled
