"""Which metrics of the summaries a report shows, and how they are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from primecli.catalog import STAGES
from primecli.report.runs import TRAINING, Entry, Run, number


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one stage. evaluations: of every evaluation rather than of training."""

    stage: str
    metric: str
    label: str
    evaluations: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over iterations on one scale. caption: how to read it; unit: of the y axis."""

    name: str
    title: str
    section: str
    unit: str
    caption: str
    lines: tuple[Line, ...]


CHARTS: tuple[Chart, ...] = (
    Chart(
        "accuracy",
        "Accuracy",
        "Learning",
        "mean outcome reward",
        "Evaluations are after an iteration's update; training is of the samples before it.",
        (Line("verify", "accuracy", "{}", evaluations=True), Line("verify", "accuracy", "training")),
    ),
    Chart(
        "pair-accuracy",
        "PRM pair accuracy",
        "Learning",
        "share of pairs",
        "Right/wrong pairs of a group that the PRM orders rightly. Before: on responses it has not seen; 0.5 is noise.",
        (
            Line("update-prm", "pair_accuracy_before", "before the update"),
            Line("update-prm", "pair_accuracy_after", "after it"),
        ),
    ),
    Chart(
        "reward",
        "PRM reward, right and wrong",
        "Learning",
        "nats a response",
        "Mean summed process reward before the update. The two should part; both rising together is reward hacking.",
        (
            Line("update-prm", "reward_right_before", "right responses"),
            Line("update-prm", "reward_wrong_before", "wrong responses"),
        ),
    ),
    Chart(
        "process-reward",
        "Process reward",
        "Learning",
        "nats a response",
        "Mean sum over a response's tokens, of the rollouts that were trained on.",
        (Line("score-prm", "process_reward_per_response", "all responses"),),
    ),
    Chart(
        "variance",
        "Where advantages come from",
        "Learning",
        "share of variance",
        "The part of the advantages' variance that each reward source explains.",
        (
            Line("compute-advantages", "outcome_variance_share", "outcome reward"),
            Line("compute-advantages", "process_variance_share", "process rewards"),
        ),
    ),
    Chart(
        "calibration",
        "PRM calibration error",
        "Learning",
        "absolute",
        "Of sigmoid(sum of rewards) as a probability of being right, on responses the PRM has not seen.",
        (
            Line("update-prm", "calibration_error_before", "before the update"),
            Line("update-prm", "calibration_error_after", "after it"),
        ),
    ),
    Chart(
        "critic",
        "Critic: explained variance",
        "Learning",
        "share",
        "1 is a critic that knows the returns, 0 one that does not, below 0 one that misleads.",
        (
            Line("update-critic", "explained_variance_before", "before the update"),
            Line("update-critic", "explained_variance_after", "after it"),
        ),
    ),
    Chart(
        "entropy",
        "Entropy",
        "Health",
        "nats a token",
        "Falling towards 0, the samples become the same.",
        (Line("update-policy", "entropy", "policy"),),
    ),
    Chart(
        "kl",
        "KL of the update",
        "Health",
        "nats a token",
        "How far the finished update moved the policy, and how far it was from the sampling weights while training.",
        (Line("update-policy", "kl_update", "finished update"), Line("update-policy", "kl", "while training")),
    ),
    Chart(
        "length",
        "Response length",
        "Health",
        "tokens",
        "Length creeping up without accuracy is a warning.",
        (
            Line("generate", "response_tokens", "sampled"),
            Line("generate", "response_tokens", "{}", evaluations=True),
        ),
    ),
    Chart(
        "truncation",
        "Truncated responses",
        "Health",
        "share",
        "Responses cut at their length limit.",
        (Line("generate", "truncated", "sampled"), Line("generate", "truncated", "{}", evaluations=True)),
    ),
    Chart(
        "gap",
        "Sampler against trainer",
        "Health",
        "nats a token",
        "The gap between log-probabilities of the same weights. Growing, the importance ratios are wrong.",
        (
            Line("update-policy", "logprob_gap_mean", "mean"),
            Line("update-policy", "logprob_gap_p95", "95th percentile"),
        ),
    ),
    Chart(
        "clip",
        "Clipped tokens",
        "Health",
        "share",
        "Tokens whose ratio the clip cut.",
        (Line("update-policy", "clip_fraction_low", "low"), Line("update-policy", "clip_fraction_high", "high")),
    ),
    Chart(
        "gradient",
        "Gradient norm",
        "Health",
        "before clipping",
        "Mean over an iteration's optimizer steps.",
        (Line("update-policy", "grad_norm", "policy"), Line("update-prm", "grad_norm", "PRM")),
    ),
    Chart(
        "rate",
        "Learning rate",
        "Health",
        "per step",
        "Mean over an iteration's optimizer steps.",
        (Line("update-policy", "lr", "policy"), Line("update-prm", "lr", "PRM")),
    ),
    Chart(
        "groups",
        "Groups kept by the filter",
        "Cost",
        "groups",
        "Too hard and too easy groups teach nothing: what was sampled for them is lost.",
        (
            Line("filter", "kept", "kept"),
            Line("filter", "too_hard", "too hard"),
            Line("filter", "too_easy", "too easy"),
            Line("filter", "truncated", "truncated"),
        ),
    ),
    Chart(
        "memory",
        "Peak memory",
        "Cost",
        "GiB",
        "Of the stages with a model.",
        (
            Line("update-policy", "peak_memory_gib", "update-policy"),
            Line("update-prm", "peak_memory_gib", "update-prm"),
            Line("score-prm", "peak_memory_gib", "score-prm"),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a run, by iteration. style: which line of its chart it is, from 0."""

    run: int
    label: str
    style: int
    values: dict[int, float]


def chart_series(chart: Chart, runs: Sequence[Run]) -> list[Series]:
    """The lines of a chart that any run has values for; runs one after another."""
    names: list[tuple[Line, str]] = []
    evaluations = sorted({purpose for run in runs for purpose in run.purposes()} - {TRAINING})
    for line in chart.lines:
        names += [(line, purpose) for purpose in (evaluations if line.evaluations else [TRAINING])]
    found = []
    for place, run in enumerate(runs):
        for style, (line, purpose) in enumerate(names):
            values = run.series(line.stage, line.metric, purpose)
            if values:
                found.append(Series(place, line.label.format(purpose), style, values))
    return found


def stage_seconds(run: Run) -> dict[str, dict[int, float]]:
    """Seconds by stage and iteration, in the order of an iteration; evaluations are one entry, `evaluation`."""
    known = [*STAGES, *sorted({entry.stage for entry in run.entries} - set(STAGES))]
    found = {stage: run.series(stage, "seconds") for stage in known}
    evaluation: dict[int, float] = {}
    for purpose in run.purposes():
        for entry in run.select(None, purpose) if purpose != TRAINING else ():
            evaluation[entry.iteration] = evaluation.get(entry.iteration, 0.0) + (number(entry.summary.seconds) or 0.0)
    found["evaluation"] = evaluation
    return {stage: values for stage, values in found.items() if values}


def all_metrics(runs: Sequence[Run]) -> dict[str, list[dict[int, float]]]:
    """Every metric of every stage, by `stage metric`, or `stage metric (evaluation)`: its values in each run."""
    names: dict[tuple[str, str, str], None] = {}
    for run in runs:
        for purpose in run.purposes():
            for entry in run.select(None, purpose):
                metrics = entry.summary.metrics if isinstance(entry.summary.metrics, dict) else {}
                names |= {(entry.stage, metric, purpose): None for metric in metrics}
    order = sorted(names, key=lambda name: (name[2] != TRAINING, _stage_order(name[0]), name[1]))
    found = {}
    for stage, metric, purpose in order:
        label = f"{stage} {metric}" + ("" if purpose == TRAINING else f" ({purpose})")
        values = [run.series(stage, metric, purpose) for run in runs]
        if any(values):
            found[label] = values
    return found


def _stage_order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


PATHS = frozenset({"policy", "prm", "critic", "model", "step", "groups_wanted_still"})
"""Configuration that differs between iterations of one run, and says nothing of two."""


def configuration_differences(runs: Sequence[Run]) -> list[tuple[str, str, list[Any]]]:
    """Where the runs differ in configuration: stage, key, and each run's value at its last iteration.

    A stage that only some of them have is one line, under the key `ran`.
    """
    configs: list[dict[str, dict[str, Any]]] = []
    for run in runs:
        last: dict[str, Entry] = {entry.stage: entry for entry in run.select()}
        configs.append({stage: entry.summary.config for stage, entry in last.items()})
    found: list[tuple[str, str, list[Any]]] = []
    for stage in sorted({stage for config in configs for stage in config}, key=_stage_order):
        if not all(stage in config for config in configs):
            found.append((stage, "ran", ["yes" if stage in config else "no" for config in configs]))
            continue
        keys = dict.fromkeys(key for config in configs for key in config[stage])
        for key in keys:
            values = [config[stage].get(key) for config in configs]
            if key not in PATHS and any(value != values[0] for value in values):
                found.append((stage, key, values))
    return found
