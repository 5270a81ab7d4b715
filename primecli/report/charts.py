"""The charts of a report: which metrics of the summaries each one draws, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one stage.

    stage: the stage that reports it, such as update-prm.
    metric: its name in the summary, such as pair_accuracy_before.
    label: its name in the legend; `{}` stands for the name of the evaluation.
    evaluations: draw it once for every evaluation, instead of once for training.
    """

    stage: str
    metric: str
    label: str
    evaluations: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over iterations that share a scale.

    name: its key in the page, such as pair-accuracy.
    title: its heading.
    section: the heading that it stands under.
    unit: the unit of the y axis.
    caption: how to read it.
    lines: what it draws.
    """

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
        "Evaluations measure the policy after the iteration's update; training measures the samples drawn before it.",
        (Line("verify", "accuracy", "{}", evaluations=True), Line("verify", "accuracy", "training")),
    ),
    Chart(
        "at-n",
        "Pass, majority and best of n",
        "Learning",
        "share of prompts",
        "What `primecli evaluate` found for all n samples of a prompt: one is right, the most frequent answer is, the "
        "one with the highest process reward is.",
        (
            Line("evaluate", "pass@n", "{}, pass@n", evaluations=True),
            Line("evaluate", "maj@n", "{}, maj@n", evaluations=True),
            Line("evaluate", "best@n", "{}, best@n", evaluations=True),
        ),
    ),
    Chart(
        "pair-accuracy",
        "PRM pair accuracy",
        "Learning",
        "share of pairs",
        "Correct/wrong pairs within a group that the PRM ranks correctly. Before the update it has not seen these "
        "responses; 0.5 is chance.",
        (
            Line("update-prm", "pair_accuracy_before", "before the update"),
            Line("update-prm", "pair_accuracy_after", "after the update"),
        ),
    ),
    Chart(
        "reward",
        "PRM reward, correct and wrong",
        "Learning",
        "nats per response",
        "Mean summed process reward before the update. The two lines should separate; both rising together is reward "
        "hacking.",
        (
            Line("update-prm", "reward_right_before", "correct responses"),
            Line("update-prm", "reward_wrong_before", "wrong responses"),
        ),
    ),
    Chart(
        "process-reward",
        "Process reward",
        "Learning",
        "nats per response",
        "Sum over a response's tokens, averaged over the rollouts that were trained on.",
        (Line("score-prm", "process_reward_per_response", "all responses"),),
    ),
    Chart(
        "variance",
        "Where advantages come from",
        "Learning",
        "share of variance",
        "The share of the advantages' variance that each source of reward explains.",
        (
            Line("compute-advantages", "outcome_variance_share", "outcome reward"),
            Line("compute-advantages", "process_variance_share", "process rewards"),
        ),
    ),
    Chart(
        "trust",
        "Say of the process rewards",
        "Learning",
        "share",
        "With --process-share: the share of the advantages' variance that process rewards were given. With "
        "--process-trust it is the one asked for times the trust, 2 * pair accuracy - 1: 0 for a PRM that guesses.",
        (
            Line("compute-advantages", "process_share", "share of variance"),
            Line("compute-advantages", "process_trust", "trust in the PRM"),
            Line("compute-advantages", "prm_pair_accuracy", "its pair accuracy before the update"),
        ),
    ),
    Chart(
        "calibration",
        "PRM calibration error",
        "Learning",
        "absolute",
        "Error of sigmoid(sum of rewards) as the probability that a response is correct. Before the update the PRM has "
        "not seen these responses.",
        (
            Line("update-prm", "calibration_error_before", "before the update"),
            Line("update-prm", "calibration_error_after", "after the update"),
        ),
    ),
    Chart(
        "critic",
        "Critic: explained variance",
        "Learning",
        "share",
        "1: the critic predicts the returns exactly; 0: it explains nothing; below 0: it misleads.",
        (
            Line("update-critic", "explained_variance_before", "before the update"),
            Line("update-critic", "explained_variance_after", "after the update"),
        ),
    ),
    Chart(
        "entropy",
        "Entropy",
        "Health",
        "nats per token",
        "As it falls towards 0, the samples become identical.",
        (Line("update-policy", "entropy", "policy"),),
    ),
    Chart(
        "kl",
        "KL of the update",
        "Health",
        "nats per token",
        "How far the finished update moved the policy, and how far the policy was from the sampling weights during "
        "training.",
        (Line("update-policy", "kl_update", "finished update"), Line("update-policy", "kl", "during training")),
    ),
    Chart(
        "length",
        "Response length",
        "Health",
        "tokens",
        "Length that creeps up without a gain in accuracy is a warning sign.",
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
        "Responses cut off at the length limit.",
        (Line("generate", "truncated", "sampled"), Line("generate", "truncated", "{}", evaluations=True)),
    ),
    Chart(
        "gap",
        "Sampler against trainer",
        "Health",
        "nats per token",
        "The gap between the two log-probabilities under the same weights. If it grows, the importance ratios are "
        "wrong.",
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
        "Tokens whose ratio was clipped.",
        (Line("update-policy", "clip_fraction_low", "low"), Line("update-policy", "clip_fraction_high", "high")),
    ),
    Chart(
        "gradient",
        "Gradient norm",
        "Health",
        "before clipping",
        "Mean over the iteration's optimizer steps.",
        (Line("update-policy", "grad_norm", "policy"), Line("update-prm", "grad_norm", "PRM")),
    ),
    Chart(
        "rate",
        "Learning rate",
        "Health",
        "per step",
        "Mean over the iteration's optimizer steps.",
        (
            Line("update-policy", "lr", "policy"),
            Line("update-prm", "lr", "PRM"),
            Line("update-critic", "lr", "critic"),
        ),
    ),
    Chart(
        "groups",
        "Groups kept by the filter",
        "Cost",
        "groups",
        "Groups that are too hard or too easy teach nothing; the samples spent on them are lost.",
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
        "Of the stages that load a model.",
        (
            Line("update-policy", "peak_memory_gib", "update-policy"),
            Line("update-prm", "peak_memory_gib", "update-prm"),
            Line("score-prm", "peak_memory_gib", "score-prm"),
        ),
    ),
)
