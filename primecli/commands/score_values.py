"""`primecli score-values`."""

from __future__ import annotations

from primecli.stages import score_values as stage


def score_values(options: stage.ScoreValuesOptions) -> None:
    """For PPO: compute-advantages --estimator gae uses the values as its baseline, and update-critic trains the critic
    on the returns. The critic is a causal LM with a value head. Any model or checkpoint can start one; its values are
    then 0 everywhere.

    Example:

      primecli score-values --critic ckpt/critic/1 runs/1/score-prm
    """
    stage.score_values(options)
