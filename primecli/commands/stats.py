"""`primecli stats`."""

from __future__ import annotations

from typing import Annotated

from primecli.options import Option, Partial, Shards


def stats(
    shards: Shards = (),
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
    partial: Partial = False,
) -> None:
    """Broken down by data source where there are several. Accuracy is the mean outcome reward. pass@k is the unbiased
    estimate from the samples of each group, where an outcome reward of 1 counts as right; --json also has the standard
    errors. A response's reward is the sum of its process rewards. Shards of any size are read in one pass; statistics
    whose columns no shard has yet are left out.

    Example:

      \b
      primecli stats runs/1/verify
      primecli stats 'runs/*/score-prm' --json
    """
    from primecli.analysis.statistics_view import show_statistics

    show_statistics(shards, partial=partial, as_json=as_json)
