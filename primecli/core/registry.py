"""What can be chosen by name. The command line takes its choices from here, since this does not import torch.

A new advantage estimator is a function in core/advantages.py and a line in `ESTIMATORS`; a new policy loss is one in
core/policy_losses.py and in `POLICY_LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from primecli.core.advantages import Estimator
    from primecli.core.policy_losses import Objective


@dataclass(frozen=True, slots=True)
class Entry:
    """One choice.

    function: its name in the module.
    help: what it does, as the help page says it after the name.
    """

    function: str
    help: str


ESTIMATORS = {
    "rloo": Entry("rloo", "subtracts the mean of the group's other responses"),
    "reinforce": Entry("reinforce", "no baseline"),
    "grpo": Entry("grpo", "subtracts the group's mean and divides by its standard deviation"),
    "dr-grpo": Entry("dr_grpo", "as grpo, without the division"),
    "gae": Entry("reinforce", "uses the values of a critic"),  # which `advantages.gae` subtracts itself
}
"""The advantage estimators: what `compute-advantages --estimator` offers."""


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
