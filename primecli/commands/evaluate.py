"""`primecli evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from primecli.analysis.select import Select
from primecli.analysis.step_scores import By
from primecli.errors import UsageError
from primecli.options import Option, Partial, Seed, Shards, StepSeparator, separator


def evaluate(
    shards: Shards = (),
    k: Annotated[
        tuple[int, ...],
        Option("Show pass@k, maj@k and best@k for this k; may be repeated.  [default: 1, 2, 4, … up to n]", min=1),
    ] = (),
    select: Annotated[
        Select | None,
        Option(
            "How best@k scores a response by its process rewards: their sum, or the least, mean or last over steps.  "
            "[default: sum, if the shards have process rewards]",
        ),
    ] = None,
    step_separator: StepSeparator = "\\n",
    tokenizer: Annotated[
        str | None,
        Option(
            "The tokenizer, which finds the steps.  [default: that of the model that generate recorded in the shards]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        Option("Shards of another run on the same prompts, to compare with prompt by prompt.", metavar="SHARDS"),
    ] = None,
    as_json: Annotated[bool, Option("Print JSON, with every k from 1 to n.", flags="--json")] = False,
    csv: Annotated[
        Path | None,
        Option("Also add a row for each input to this file, or replace the row that it has there.", metavar="FILE"),
    ] = None,
    step_labels: Annotated[
        bool,
        Option(
            "Evaluate the PRM instead, on shards from `primecli import` that say which step is the first wrong one."
        ),
    ] = False,
    by: Annotated[
        tuple[By, ...],
        Option(
            "With --step-labels: score a step by the sum or mean of the process rewards up to its end, or of its own; "
            "may be repeated.  [default: prefix, step]"
        ),
    ] = (),
    threshold: Annotated[
        float | None,
        Option(
            "With --step-labels: a step is wrong if its score is below this.  [default: the number with the best F1]"
        ),
    ] = None,
    threshold_from: Annotated[
        str | None,
        Option(
            "With --step-labels: find the threshold on this data source alone, and use it on the others.",
            metavar="SOURCE",
        ),
    ] = None,
    seed: Seed = 0,
    partial: Partial = False,
) -> None:
    """For graded samples of held-out prompts, with 95% intervals from resampling prompts, by data source where there
    are several. avg@n is the mean outcome reward of a prompt's n samples. pass@k is the chance that one of k samples is
    right, maj@k that the most frequent answer among k is (answers that the verifier calls equal are one answer, of
    equally frequent ones one is drawn), best@k the mean outcome of the sample with the highest score among k; each is
    exact, over all choices of k of the n samples. weighted-maj@n is the majority of all samples, each with the weight
    sigmoid(score). Programs have no majority. Several directories are evaluated separately.

    The result stays beside the shards as _evaluation.json, which the report and `watch` show.

    With --step-labels, the PRM is evaluated as by ProcessBench: F1 is the harmonic mean of the share of wrong responses
    whose first wrong step is found exactly and of the share of right responses in which no step is called wrong. Beside
    it stand an outcome model, which can call the last step wrong and no other, chance, and how often the lowest step is
    the last: a PRM of which that is nearly always true is an outcome model in disguise.

    Example:

      \b
      primecli generate --model ckpt/policy/3 --prompts aime.parquet --n 16 --out runs/eval/3/generate \\
        | primecli verify | primecli evaluate --csv runs/leaderboard.csv
      primecli evaluate runs/eval/3/verify --baseline runs/eval/0/verify
      primecli evaluate runs/bench/score-prm --step-labels --threshold-from gsm8k
    """
    given = {
        "--k": bool(k),
        "--select": select is not None,
        "--tokenizer": tokenizer is not None,
        "--baseline": baseline is not None,
        "--csv": csv is not None,
    }
    for_steps = {
        "--by": bool(by),
        "--threshold": threshold is not None,
        "--threshold-from": threshold_from is not None,
    }
    for option, is_given in (given if step_labels else for_steps).items():
        if is_given:
            raise UsageError(f"{option} goes {'without' if step_labels else 'with'} --step-labels")
    if step_labels:
        if threshold is not None and (threshold_from is not None or len(by) > 1):
            other = "--threshold-from" if threshold_from is not None else "several --by, which are on different scales"
            raise UsageError(f"--threshold goes without {other}", "give one or the other")
        from primecli.analysis.step_label_view import show_step_labels

        show_step_labels(
            shards,
            by=by or ((By.prefix,) if threshold is not None else ()),
            threshold=threshold,
            threshold_from=threshold_from,
            seed=seed,
            as_json=as_json,
            partial=partial,
        )
        return
    from primecli.analysis.evaluation_view import show_evaluation

    show_evaluation(
        shards,
        ks=sorted(set(k)),
        select=select,
        separator=separator(step_separator),
        tokenizer=tokenizer,
        baseline=baseline,
        seed=seed,
        as_json=as_json,
        csv_file=csv,
        partial=partial,
    )
