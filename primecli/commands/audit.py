"""`primecli audit`."""

from __future__ import annotations

from typing import Annotated

from primecli.options import Option, Partial, Seed, Shards


def audit(
    shards: Shards = (),
    fail_on: Annotated[
        tuple[str, ...],
        Option(
            "End with exit code 5 where the metric's value is so, such as 'pair-accuracy<0.6'; may be repeated. Quote "
            "it: < and > are the shell's.",
            metavar="METRIC<VALUE|METRIC>VALUE",
        ),
    ] = (),
    top: Annotated[int, Option("Groups of the strongest disagreement to show.", min=0)] = 5,
    as_json: Annotated[bool, Option("Print JSON, with the bins of the calibration.", flags="--json")] = False,
    seed: Seed = 0,
    partial: Partial = False,
) -> None:
    """A response's score is the sum of its process rewards. The audit holds it against the outcome, within groups
    and over the batch, against length, and against repeating itself; says ok, watch or bad, with the bounds; and
    shows the groups where score and outcome disagree most: those whose best-scored wrong response is furthest
    above their worst-scored right one. Intervals are 95%, by resampling whole groups. Responses without an
    outcome reward are left out and counted.

    Several directories are audited apart and shown beside each other, in the order of their numbers:
    overoptimisation is a trend.

    \b
    Metrics, for --fail-on (a wide terminal says what each is):
      outcome  pair-accuracy group-auc group-correlation correlation spearman auc
               calibration-error brier reward-right reward-wrong
      length   length-correlation group-length-correlation wrong-length-correlation
      repeats  repeats repeats-preferred duplicates distinct truncation
               truncation-preferred

    A condition on a metric that cannot be computed, as where no group has right and wrong responses, does not
    pass: exit code 3.

    Example:

      \b
      primecli audit runs/*/score-prm \\
        --fail-on 'pair-accuracy<0.6' --fail-on 'group-length-correlation>0.5'
    """
    from primecli.analysis.audit_view import show_audit

    show_audit(shards, fail_on=fail_on, top=top, seed=seed, as_json=as_json, partial=partial)
