"""`primecli check-logprobs`."""

from __future__ import annotations

from primecli.stages import check_logprobs as stage


def check_logprobs(options: stage.CheckLogprobsOptions) -> None:
    """Scores the tokens of the rollouts with the code that trains, at the temperature of each row. Prints a table on
    stdout with one line for each engine that sampled: the gap |trainer - sampler| of a token's log-probability in nats
    (mean, 95th percentile and maximum), and the effective sample size of the importance weights
    exp(trainer - sampler), for tokens and for whole responses, as a share of their number. It is 1 where both agree.

    Example:

      primecli check-logprobs runs/1/generate --model ckpt/policy/0 --max-gap 0.02
    """
    stage.check_logprobs(options)
