"""What can be chosen by name. The command line takes its choices from here, since this does not import torch.

| kind | a function in | a line in |
|---|---|---|
| advantage estimator | core/advantages.py | `ESTIMATORS` |
| form of process rewards | core/process_rewards.py | `PROCESS_FORMS` |
| objective of the PRM | core/prm_objectives.py | `PRM_OBJECTIVES` |
| policy loss | core/policy_losses.py | `POLICY_LOSSES` |

Estimators, objectives and policy losses can be plugged in from outside, too: see plugins.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from primecli.core.advantages import Estimator
    from primecli.core.policy_losses import Objective
    from primecli.core.process_rewards import Form


@dataclass(frozen=True, slots=True)
class Entry:
    """One choice.

    function: its name in the module.
    help: what it does, as the help page says it after the name.
    """

    function: str
    help: str


@dataclass(frozen=True, slots=True)
class PrmEntry(Entry):
    """One objective of the PRM.

    of_means: whether it predicts a response's outcome from the mean of its rewards, rather than from their sum.
    """

    of_means: bool = False


ESTIMATORS = {
    "rloo": Entry("rloo", "subtracts the mean of the group's other responses"),
    "reinforce": Entry("reinforce", "no baseline"),
    "grpo": Entry("grpo", "subtracts the group's mean and divides by its standard deviation"),
    "dr-grpo": Entry("dr_grpo", "as grpo, without the division"),
    "gdpo": Entry("gdpo", "as grpo, but divides process rewards by the deviation of their sums over a response"),
    "maxrl": Entry("maxrl", "subtracts the group's mean and divides by its mean outcome reward"),
    "reinforce++": Entry("reinforce", "no baseline but the batch's mean, by whitening"),
    "reinforce++-baseline": Entry("dr_grpo", "subtracts the group's mean, and whitens"),
    "gae": Entry("reinforce", "uses the values of a critic"),  # which `advantages.gae` subtracts itself
}
"""The advantage estimators: what `compute-advantages --estimator` offers."""

WHITENED = ("reinforce++", "reinforce++-baseline")
"""Estimators of which whitening is a part."""

WITHOUT_BASELINE = ("reinforce", "reinforce++", "gae")
"""Estimators that compare no responses of a group."""

PROCESS_FORMS = {
    "plain": Entry("plain", "as they are"),
    "redistributed": Entry(
        "redistributed", "the outcome reward divided among the steps, by a softmax of their process rewards"
    ),
    "min": Entry(
        "min_form", "weighted by a softmax of their negatives, so that a response is as good as its worst step"
    ),
    "wrong-centered": Entry(
        "wrong_centered", "those of wrong responses minus the mean over the group's wrong responses"
    ),
}
"""What process rewards become before a baseline is subtracted: what `compute-advantages --process-form` offers."""


def process_form(name: str) -> Form:
    """The function of a form of process rewards.

    >>> process_form("min").__name__
    'min_form'
    """
    from primecli.core import process_rewards

    function: Form = getattr(process_rewards, PROCESS_FORMS[name].function)
    return function


PRM_OBJECTIVES = {
    "ce": PrmEntry("prm_cross_entropy", "cross-entropy of each response's outcome"),
    "dpo": PrmEntry("prm_dpo", "better against worse responses of a group, with one more forward pass per step"),
    "prefix": PrmEntry("prm_prefix", "every prefix's mean reward against the outcome, with a margin", of_means=True),
}
"""The objectives of the PRM: what `update-prm --loss` offers. Functions of core/losses.py and core/prm_objectives.py,
chosen in training/prm_objective.py."""

BALANCES = ("boundary", "weight")
"""How the accuracy of a group may enter an objective of the PRM; see `prm_objectives.balanced_logistic`."""


@dataclass(frozen=True, slots=True)
class PolicyLossEntry(Entry):
    """A policy loss.

    clip: its default bounds, lower and upper, which the command line can change; None if it has none.
    aggregation: how its authors aggregate tokens, such as seq-mean-token-mean.
    settings: the options that only some losses have, with their defaults: keyword arguments of the function.
    """

    clip: tuple[float, float] | None = (0.2, 0.2)
    aggregation: str = "token-mean"
    settings: Mapping[str, float | None] = field(default_factory=dict)


POLICY_LOSSES = {
    "ppo": PolicyLossEntry("ppo", "the clipped ratio of each token", settings={"dual_clip": None}),
    "gspo": PolicyLossEntry(
        "gspo",
        "one clipped ratio per response",
        clip=(3e-4, 4e-4),
        aggregation="seq-mean-token-mean",
        settings={"dual_clip": None},
    ),
    "cispo": PolicyLossEntry(
        "cispo", "the clipped ratio weights REINFORCE, so clipped tokens still learn", clip=(1.0, 4.0)
    ),
    "sapo": PolicyLossEntry(
        "sapo",
        "a soft gate in place of the clip",
        clip=None,
        aggregation="seq-mean-token-mean",
        settings={"tau_positive": 1.0, "tau_negative": 1.05},
    ),
    "dppo": PolicyLossEntry(
        "dppo",
        "leaves out tokens whose probability, not its ratio, has moved too far",
        clip=(0.15, 0.15),
        settings={"ratio_cap": 20.0},
    ),
    "gmpo": PolicyLossEntry(
        "gmpo",
        "the geometric mean of a response's clipped ratios; the bounds are on their logarithms",
        clip=(0.4, 0.4),
        aggregation="seq-mean-token-mean",
    ),
}
"""The policy losses: what `update-policy --policy-loss` offers."""


def policy_loss(name: str) -> Objective:
    """The function of a policy loss.

    >>> policy_loss("gspo").__name__
    'gspo'
    """
    from primecli.core import policy_losses

    function: Objective = getattr(policy_losses, POLICY_LOSSES[name].function)
    return function


def estimator(name: str) -> Estimator:
    """The function of an estimator, which subtracts the baseline from the rewards.

    >>> estimator("dr-grpo").__name__
    'dr_grpo'
    """
    from primecli.core import advantages

    function: Estimator = getattr(advantages, ESTIMATORS[name].function)
    return function


def choices_help(entries: Mapping[str, Entry]) -> str:
    """All entries as the help text of an option.

    >>> choices_help({"a": Entry("a", "this"), "b": Entry("b", "that")})
    'a: this; b: that.'
    """
    return "; ".join(f"{name}: {entry.help}" for name, entry in entries.items()) + "."
