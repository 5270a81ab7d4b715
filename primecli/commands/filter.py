"""`primecli filter`."""

from __future__ import annotations

from primecli.stages import filter as stage


def filter(options: stage.FilterOptions) -> None:
    """A group passes when its accuracy is within the bounds and no response of it was cut short. A group with
    an ungraded response never passes. _summary.json counts why groups were dropped.

    With --groups N this stage behaves like head: after N groups it closes its input, and generate, which
    sees the closed pipe, samples no more. A shard of which no group passes is not written.

    Example:

      primecli filter --accuracy 0.2 0.8 --groups 64 runs/1/verify
    """
    stage.filter(options)
