"""The few numbers that stand first in a report, and the notes that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from primecli.report.runs import TRAINING, Run


@dataclass(frozen=True, slots=True)
class Headline:
    """One number of each run, by iteration. unit: `s` is a duration; change: whether its change says something."""

    label: str
    unit: str
    values: tuple[dict[int, float], ...]
    change: bool = True


def headlines(runs: Sequence[Run]) -> list[Headline]:
    """What of each run stands first; a number that no run has is left out."""
    evaluations = sorted({purpose for run in runs for purpose in run.purposes()} - {TRAINING})
    found = [Headline(f"accuracy, {name}", "", _series(runs, "verify", "accuracy", name)) for name in evaluations]
    found += [
        Headline("accuracy, training", "", _series(runs, "verify", "accuracy")),
        Headline("PRM pair accuracy", "", _series(runs, "update-prm", "pair_accuracy_before")),
        Headline("entropy", "nats", _series(runs, "update-policy", "entropy")),
        Headline("KL of the update", "nats", _series(runs, "update-policy", "kl_update")),
        Headline("response length", "tokens", _series(runs, "generate", "response_tokens")),
        Headline("rollouts", "", tuple(_floats(run.rollouts()) for run in runs), change=False),
        Headline("at work", "s", tuple(run.seconds() for run in runs), change=False),
    ]
    return [line for line in found if any(any(values.values()) for values in line.values)]


def _series(runs: Sequence[Run], stage: str, metric: str, purpose: str = TRAINING) -> tuple[dict[int, float], ...]:
    return tuple(run.series(stage, metric, purpose) for run in runs)


def _floats(values: dict[int, int]) -> dict[int, float]:
    return {iteration: float(value) for iteration, value in values.items()}


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader should know first: stages that failed, were killed or still run, summaries that cannot be read."""
    found = []
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        for entry in run.entries:
            state = entry.state()
            where = entry.path.relative_to(run.path).as_posix()
            if state == "failed":
                found.append(f"{name}{where}: {entry.stage} failed: {entry.summary.error or 'it does not say why'}")
            elif state in ("killed", "running"):
                found.append(
                    f"{name}{where}: {entry.stage} {'was killed' if state == 'killed' else 'is still running'}"
                )
        found += [f"{name}{problem}" for problem in run.problems]
    return found
