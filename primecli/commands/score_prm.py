"""`primecli score-prm`."""

from __future__ import annotations

from primecli.stages import score_prm as stage


def score_prm(options: stage.ScorePrmOptions) -> None:
    """The reward of a token is beta * (log-probability under the PRM - log-probability under the reference), in nats,
    at temperature 1. After update-prm in a pipe, this stage uses the updated PRM.

    Example:

      primecli score-prm --prm ckpt/prm/1 --ref ckpt/sft runs/1/filter
    """
    stage.score_prm(options)
