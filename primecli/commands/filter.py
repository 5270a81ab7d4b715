"""`primecli filter`."""

from __future__ import annotations

from primecli.stages import filter as stage


def filter(options: stage.FilterOptions) -> None:
    """A group passes if its accuracy is within the bounds and none of its responses was cut off at the length limit
    (--allow-truncated permits that). A group with an ungraded response never passes. Where rewards are fractional,
    --min-std drops groups whose responses are all about equally good, which their accuracy does not show. _summary.json
    says how many groups were dropped for which reason.

    With --groups N this stage works like head: after N groups it closes its input, and generate, which notices that its
    reader has gone, stops sampling. A shard in which no group passes is not written.

    Example:

      primecli filter --accuracy 0.2 0.8 --groups 64 runs/1/verify
    """
    stage.filter(options)
