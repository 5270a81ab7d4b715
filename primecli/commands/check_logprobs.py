"""`primecli check-logprobs`."""

from __future__ import annotations

from primecli.stages import check_logprobs as stage


def check_logprobs(options: stage.CheckLogprobsOptions) -> None:
    """The rollouts' tokens are scored by the code that trains, at the temperature of each row. The table on stdout
    has, for each engine that sampled: the gap |trainer - sampler| of a token's log-probability, in nats (mean,
    95th percentile, maximum), and the effective sample size of the importance weights exp(trainer - sampler) as
    a share of their number, of tokens and of whole responses: 1 where both agree.

    Example:

      primecli check-logprobs runs/1/generate --model ckpt/policy/0 --max-gap 0.02
    """
    stage.check_logprobs(options)
