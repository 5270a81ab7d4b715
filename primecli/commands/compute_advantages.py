"""`primecli compute-advantages`."""

from __future__ import annotations

from primecli.stages import compute_advantages as stage


def compute_advantages(options: stage.ComputeAdvantagesOptions) -> None:
    """Combines outcome and process rewards. Reads the whole batch before it writes, because scaling and whitening are
    over the whole batch, never over one shard. --process-coef 0 uses outcome rewards alone and needs no score-prm.
    --estimator gae needs score-values.

    --process-form, --process-baseline, --granularity and --process-lambda say what is made of process rewards. With
    --process-share 0.5 --process-trust they take half of the advantages' variance once the PRM ranks responses well,
    and none while it guesses.

    The columns outcome_advantages and process_advantages say how much of each token's advantage comes from which
    reward.

    Example:

      primecli compute-advantages --outcome-coef 1 --process-coef 1 runs/1/score-prm
    """
    stage.compute_advantages(options)
