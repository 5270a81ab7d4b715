"""`primecli update-policy`."""

from __future__ import annotations

from primecli.stages import update_policy as stage


def update_policy(options: stage.UpdatePolicyOptions) -> None:
    """The loss is PPO's clipped surrogate or another one (--policy-loss), with an optional KL to a reference and an
    optional entropy bonus. What each mask leaves out is in _summary.json, as a share of the tokens.

    Refuses rollouts of another policy than --policy, unless --max-staleness allows them. Takes log-probabilities at the
    temperature that the rollouts were sampled with. Passes its input paths on once the checkpoint is complete. Shows
    metrics that tell whether training is healthy, and stores them in _summary.json.

    Example:

      \b
      primecli update-policy --policy ckpt/policy/0 \\
        --checkpoint ckpt/policy/1 runs/1/compute-advantages
    """
    stage.update_policy(options)
