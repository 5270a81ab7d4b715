"""`primecli update-prm`."""

from __future__ import annotations

from primecli.stages import update_prm as stage


def update_prm(options: stage.UpdatePrmOptions) -> None:
    """The score of a response is the sum of its tokens' implicit rewards, beta * (log p_prm - log p_ref). The loss is
    the binary cross-entropy of the score against the outcome reward; --loss dpo instead compares the better
    and the worse responses of a group. --loss prefix takes the mean reward of each prefix of a response, so that the
    PRM also learns where a response went wrong; --balance makes up for groups of which most responses are right, or
    wrong. Reads the whole batch. Passes its input paths on once the checkpoint is complete, so a score-prm after it
    uses the new PRM; give it the same --beta.

    The metrics from before the update are on responses that the PRM has not seen, so they say whether its rewards can
    be trusted. The metrics from after the update are on the responses it has just been trained on.

    Example:

      \b
      primecli update-prm --prm ckpt/prm/0 --ref ckpt/sft \\
        --checkpoint ckpt/prm/1 runs/1/filter
    """
    stage.update_prm(options)
