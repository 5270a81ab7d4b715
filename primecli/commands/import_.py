"""`primecli import`."""

from __future__ import annotations

from primecli.stages import import_ as stage


def import_(options: stage.ImportOptions) -> None:
    """The shards are as if a policy had sampled the responses and `verify` had graded them, so that a PRM is trained on
    them by `update-prm` and judged by `evaluate`. All responses to one prompt form a group. The response keeps its text
    exactly: one whose token ids would decode to another is left out and counted.

    Files may hold messages and a label; a prompt, a response and a score; chosen and rejected responses; or a problem,
    steps and their labels, as ProcessBench and PRM800K do. Steps are joined by an empty line; where each ends is kept
    in the column step_ends, and the first wrong one in first_wrong_step.

    Example:

      \b
      primecli import rollouts.parquet --model ckpt/sft --out runs/offline/import \\
        | primecli update-prm --prm ckpt/sft --ref ckpt/sft --checkpoint ckpt/prm
    """
    stage.import_(options)
