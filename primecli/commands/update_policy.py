"""`primecli update-policy`."""

from __future__ import annotations

from primecli.stages import update_policy as stage


def update_policy(options: stage.UpdatePolicyOptions) -> None:
    """The loss is PPO's clipped surrogate, with a KL to a reference and an entropy bonus where asked for.

    Rollouts of another policy than --policy are refused, unless --max-staleness allows them. Log-probabilities
    are taken at the temperature that the rollouts were sampled with. Passes its input paths on once the
    checkpoint is complete. Prints what tells whether training is healthy, and stores it in _summary.json.

    Example:

      \b
      primecli update-policy --policy ckpt/policy/0 \\
        --checkpoint ckpt/policy/1 runs/1/compute-advantages
    """
    stage.update_policy(options)
