"""`primecli update-critic`."""

from __future__ import annotations

from primecli.stages import update_critic as stage


def update_critic(options: stage.UpdateCriticOptions) -> None:
    """The critic is a causal LM with a value head. Any model or checkpoint can start one; its values are then 0
    everywhere. The loss is half the squared error to the returns that compute-advantages --estimator gae stored,
    clipped around the values that score-values stored. Passes its input paths on once the checkpoint is complete.

    Example:

      \b
      primecli score-values --critic ckpt/critic/0 runs/1/score-prm \\
        | primecli compute-advantages --estimator gae \\
        | primecli update-critic --critic ckpt/critic/0 --checkpoint ckpt/critic/1 \\
        | primecli update-policy --policy ckpt/policy/0 --checkpoint ckpt/policy/1
    """
    stage.update_critic(options)
