"""The few numbers at the top of a report, and the notes that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from primecli.report.runs import TRAINING, Run, evaluations_of


@dataclass(frozen=True, slots=True)
class Headline:
    """One number at the top of a report.

    label: its name.
    unit: its unit; `s` marks a duration.
    values: for each run, by iteration.
    change: whether to show the change since the first iteration; pointless for what only adds up.
    """

    label: str
    unit: str
    values: tuple[dict[int, float], ...]
    change: bool = True


def headlines(runs: Sequence[Run]) -> list[Headline]:
    """The headlines of the runs; a number that no run has is left out."""
    lines = [
        Headline(f"accuracy, {name}", "", _series(runs, "verify", "accuracy", name)) for name in evaluations_of(runs)
    ]
    lines += [
        Headline(f"{metric}, {name}", "", _series(runs, "evaluate", metric, name))
        for name in evaluations_of(runs)
        for metric in ("pass@n", "maj@n", "best@n")
    ]
    lines += [
        Headline("accuracy, training", "", _series(runs, "verify", "accuracy")),
        Headline("PRM pair accuracy", "", _series(runs, "update-prm", "pair_accuracy_before")),
        Headline("entropy", "nats", _series(runs, "update-policy", "entropy")),
        Headline("KL of the update", "nats", _series(runs, "update-policy", "kl_update")),
        Headline("response length", "tokens", _series(runs, "generate", "response_tokens")),
        Headline("rollouts", "", tuple(_floats(run.total_rollouts()) for run in runs), change=False),
        Headline("busy time", "s", tuple(run.total_seconds() for run in runs), change=False),
    ]
    return [line for line in lines if any(any(values.values()) for values in line.values)]


def _series(runs: Sequence[Run], stage: str, metric: str, purpose: str = TRAINING) -> tuple[dict[int, float], ...]:
    return tuple(run.series(stage, metric, purpose) for run in runs)


def _floats(values: dict[int, int]) -> dict[int, float]:
    return {iteration: float(value) for iteration, value in values.items()}


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader should know first: stages that failed, were killed or are running, unreadable summaries."""
    lines = []
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        for entry in run.entries:
            state = entry.state()
            where = f"{name}{entry.path.relative_to(run.path).as_posix()}: {entry.stage}"
            if state == "failed":
                lines.append(f"{where} failed: {entry.summary.error or 'it recorded no reason'}")
            elif state == "killed":
                lines.append(f"{where} was killed")
            elif state == "running":
                lines.append(f"{where} is still running")
        lines += [f"{name}{problem}" for problem in run.problems]
    return lines
