"""What can be chosen by name. The command line takes its choices from here, since this does not import torch.

A new advantage estimator is a function in core/advantages.py and a line in `ESTIMATORS`; a new form of process rewards
is one in core/process_rewards.py and a line in `PROCESS_FORMS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from primecli.core.advantages import Estimator
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
    "dpo": PrmEntry("prm_dpo", "right against wrong responses of a group, with one more forward pass per step"),
    "prefix": PrmEntry("prm_prefix", "every prefix's mean reward against the outcome, with a margin", of_means=True),
}
"""The objectives of the PRM: what `update-prm --loss` offers. Functions of core/losses.py and core/prm_objectives.py,
chosen in training/prm_objective.py."""

BALANCES = ("boundary", "weight")
"""How the accuracy of a group may enter an objective of the PRM; see `prm_objectives.balanced_logistic`."""


def estimator(name: str) -> Estimator:
    """The function of an estimator, which subtracts the baseline from the rewards.

    >>> estimator("dr-grpo").__name__
    'dr_grpo'
    """
    from primecli.core import advantages

    function: Estimator = getattr(advantages, ESTIMATORS[name].function)
    return function


def choices_help(entries: dict[str, Entry]) -> str:
    """All entries as the help text of an option.

    >>> choices_help({"a": Entry("a", "this"), "b": Entry("b", "that")})
    'a: this; b: that.'
    """
    return "; ".join(f"{name}: {entry.help}" for name, entry in entries.items()) + "."
