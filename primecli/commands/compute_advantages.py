"""`primecli compute-advantages`."""

from __future__ import annotations

from primecli.stages import compute_advantages as stage


def compute_advantages(options: stage.ComputeAdvantagesOptions) -> None:
    """Combines outcome and process rewards. Reads the whole batch before it writes: scaling and whitening are
    over all of it, never over a shard. --process-coef 0 is outcome-only and needs no score-prm;
    --estimator gae needs score-values.

    outcome_advantages and process_advantages say how much of each token's advantage came from which source.

    Example:

      primecli compute-advantages --outcome-coef 1 --process-coef 1 runs/1/score-prm
    """
    stage.compute_advantages(options)
