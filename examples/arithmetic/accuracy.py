"""Print a run's held-out accuracy by iteration, with what its updates report, and write both as CSV.

Reads only the `_summary.json` files of the stages. Writes RUN/accuracy.csv.

Example:
    python examples/arithmetic/accuracy.py work/rloo-process-seed0
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("iteration", "rollouts", "heldout_accuracy", "training_accuracy", "prm_pair_accuracy", "entropy", "seconds")


def metric(directory: Path, name: str) -> float | None:
    """A metric from a stage's summary; None if the stage has not run."""
    summary = read_summary(directory)
    if summary is None:
        return None
    value = summary["metrics"].get(name) if name != "seconds" else summary["seconds"]
    return None if value is None else float(value)


def read_summary(directory: Path) -> dict[str, Any] | None:
    """A directory's summary; None if it is missing or the stage did not complete."""
    try:
        summary: dict[str, Any] = json.loads((directory / "_summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if summary.get("status") == "complete" else None


def rows_of(run: Path) -> list[dict[str, float | None]]:
    """One row per iteration; iteration 0 is the SFT model.

    rollouts: all that were sampled until the end of this iteration, including those that the filter dropped.
    heldout_accuracy: of the policy after this iteration; None if it was not evaluated.
    training_accuracy: of this iteration's samples, so of the policy before it.
    groups_kept: the groups among them that passed the filter.
    prm_pair_accuracy_before: of the PRM on those groups, before it is trained on them.
    prm_pair_accuracy: the same, during that training.
    critic_explained_variance: of their returns, before the critic is trained on them.
    process_variance_share: the share of the advantages' variance that comes from process rewards.
    """
    rows: list[dict[str, float | None]] = []
    rollouts = 0
    evaluated = {int(path.name) for path in run.glob("eval/*") if path.name.isdigit()}
    for iteration in range(max(evaluated, default=-1) + 1):
        sampled = run / str(iteration)
        summary = read_summary(sampled / "verify") or read_summary(sampled / "generate")  # distillation grades nothing
        if summary is not None:
            rollouts += summary["rows"]
        updates = [run / name / str(iteration) for name in ("policy", "prm", "critic")]
        stages = [*(run / str(iteration)).glob("*"), *updates, run / "prm" / f"{iteration}-replay"]
        seconds = [metric(stage, "seconds") for stage in stages]
        rows.append(
            {
                "iteration": iteration,
                "rollouts": rollouts,
                "heldout_accuracy": metric(run / "eval" / str(iteration) / "verify", "accuracy"),
                "training_accuracy": metric(run / str(iteration) / "verify", "accuracy"),
                "groups_kept": metric(run / str(iteration) / "filter", "kept"),
                "prm_pair_accuracy_before": metric(run / "prm" / str(iteration), "pair_accuracy_before"),
                "prm_pair_accuracy": metric(run / "prm" / str(iteration), "pair_accuracy"),
                "critic_explained_variance": metric(run / "critic" / str(iteration), "explained_variance_before"),
                "process_variance_share": metric(run / "policy" / str(iteration), "process_variance_share"),
                "entropy": metric(run / "policy" / str(iteration), "entropy"),
                "seconds": sum(value for value in seconds if value is not None) or None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    run: Path = parser.parse_args().run
    if not (run / "eval").is_dir():
        raise SystemExit(f"accuracy.py: {run}/eval: no such directory (run `make` first)")
    rows = rows_of(run)
    with open(run / "accuracy.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    table = Table(title=f"{run}: accuracy by iteration", title_justify="left")
    for name in COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        if row["heldout_accuracy"] is None:
            continue
        values = [row[name] for name in COLUMNS]
        cells = [
            "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value) for value in values
        ]
        table.add_row(*cells)
    Console().print(table)
    print(f"shards: {run}/ITERATION/STAGE/*.parquet, such as {run}/1/compute-advantages/*.parquet")
    print(f"checkpoints: {run}/policy/ITERATION and {run}/prm/ITERATION")
    print(f"this table: {run}/accuracy.csv")


if __name__ == "__main__":
    main()
