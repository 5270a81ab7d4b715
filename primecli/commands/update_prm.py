"""`primecli update-prm`."""

from __future__ import annotations

from primecli.stages import update_prm as stage


def update_prm(options: stage.UpdatePrmOptions) -> None:
    """The score of a response is the sum of its tokens' implicit rewards, beta * (log p_prm - log p_ref); the
    loss is its binary cross-entropy against the outcome reward, or that of the pairs of a group. Reads the
    whole batch; once the checkpoint is complete, passes its input paths on, so that a score-prm behind it uses
    the new PRM.

    What is measured before the update is on responses that the PRM has not seen: whether it can still be
    believed. What is measured after it is on those it was just trained on.

    Example:

      \b
      primecli update-prm --prm ckpt/prm/0 --ref ckpt/sft \\
        --checkpoint ckpt/prm/1 runs/1/filter
    """
    stage.update_prm(options)
