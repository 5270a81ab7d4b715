"""The example's measurement of how much data a PRM needs: what it measures, and what a rerun leaves alone."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import numpy as np
import prm_data
import pytest
from prm_data import Bench, Quality, Recipe, Response, quality


def response(prompt: str, *steps: tuple[float, bool], is_right: bool = False) -> Response:
    """One whose steps are one token each: rewards, and whether the step is wrong, which the truth blames with -1."""
    rewards, wrong = np.array([reward for reward, _ in steps]), np.array([bad for _, bad in steps])
    return Response(prompt, is_right, rewards, -wrong.astype(float), rewards, wrong)


def test_the_documentation() -> None:
    found = doctest.testmod(prm_data)
    assert found.attempted
    assert not found.failed


def test_the_quality_of_rewards() -> None:
    right = response("p", (0.5, False), (-0.3, False), is_right=True)  # sums to 0.2
    one = response("p", (-0.4, True), (0.1, False))
    other = response("p", (0.1, True), (0.1, False))  # sums to 0.2 too, which is half of a pair
    found = quality([right, one, other, response("q", (-0.2, False), (9.0, False))])
    assert found.pairs == pytest.approx(0.75)
    assert found.precision == pytest.approx(0.5)  # -0.4 is wrong, -0.3 is not
    assert found.chance == pytest.approx(2 / 8)
    squares = [0.25, 0.09, 0.16, 0.01, 0.01, 0.01, 0.04, 81.0]
    assert found.energy == pytest.approx((0.16 + 0.01) / sum(squares))


def test_rewards_of_nothing_say_nothing() -> None:
    untrained = quality([response("p", (0.0, False), is_right=True), response("p", (0.0, True))])
    assert (untrained.pairs, untrained.energy) == (0.5, 0.0)
    with pytest.raises(ValueError, match="no pair"):
        quality([response("p", (0.0, True)), response("q", (0.0, False), is_right=True)])
    with pytest.raises(ValueError, match="no wrong step"):
        quality([response("p", (0.0, False)), response("p", (0.0, False), is_right=True)])


def test_a_rerun_measures_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, int]] = []
    sampled: list[int] = []

    def measure(self: Bench, recipe: Recipe, seed: int) -> Quality:
        measured.append((recipe.name, seed))
        return Quality(0.75, 0.5 + seed / 10, 0.1, 0.25)

    monkeypatch.setattr(Bench, "measure", measure)
    monkeypatch.setattr(Bench, "sample", lambda self, seed: sampled.append(seed))
    monkeypatch.setattr(prm_data, "RECIPES", (Recipe("one", 1), Recipe("two", 2)))
    file = tmp_path / "results" / "prm-data.csv"
    monkeypatch.setattr(sys, "argv", ["prm_data.py", "--csv", str(file), "--work", str(tmp_path)])
    prm_data.main()
    assert measured == [(name, seed) for seed in prm_data.SEEDS for name in ("one", "two")]
    assert sampled == list(prm_data.SEEDS)
    assert "0.600 ± 0.058" in capsys.readouterr().out
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    measured.clear()
    prm_data.main()
    assert measured == [("two", 2)]
    assert file.read_text().splitlines(keepends=True) == lines
