"""`primecli score-values`."""

from __future__ import annotations

from primecli.stages import score_values as stage


def score_values(options: stage.ScoreValuesOptions) -> None:
    """For PPO: compute-advantages --estimator gae takes the values as baseline, and update-critic trains on what
    came instead. The critic is a causal LM with a value head; any model or checkpoint can start one, and then
    expects 0 everywhere.

    Example:

      primecli score-values --critic ckpt/critic/1 runs/1/score-prm
    """
    stage.score_values(options)
