"""The options of compute-advantages: how the rewards of a batch become advantages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated

from primecli import plugins
from primecli.core.registry import ESTIMATORS, PROCESS_FORMS, WHITENED, WITHOUT_BASELINE, choices_help
from primecli.errors import UsageError
from primecli.files import Json
from primecli.options import Option, Options, StepSeparator, positive, separator


class Granularity(StrEnum):
    """Which tokens have a process reward."""

    token = "token"
    step = "step"
    whole = "whole"


class ProcessNorm(StrEnum):
    """How process rewards are scaled."""

    batch = "batch"
    none = "none"


class ProcessBaseline(StrEnum):
    """Which baseline is subtracted from process rewards."""

    paper = "paper"
    recipe = "recipe"
    per_token = "per-token"
    pooled = "pooled"
    values = "values"
    position = "position"


TEMPERATURES = {"redistributed": 1.0, "min": 0.1}
"""The temperatures of the softmax of those --process-form that have one."""

FORMS_BY_OUTCOME = ("redistributed", "wrong-centered")
"""The --process-form that depend on the outcome rewards."""

ADDED_BASELINES = (
    ProcessBaseline.per_token,
    ProcessBaseline.pooled,
    ProcessBaseline.values,
    ProcessBaseline.position,
)
"""What is neither the paper's nor the first code's."""

LATER: dict[str, Json] = {
    "process_clip": None,
    "process_form": "plain",
    "process_temperature": None,
    "process_lambda": 1.0,
    "process_share": None,
    "process_trust": False,
}
"""Options that are recorded only where they differ from this."""


@dataclass(frozen=True, kw_only=True)
class AdvantageOptions(Options):
    """How rewards become advantages."""

    estimator: Annotated[
        str,
        Option(
            f"{choices_help(ESTIMATORS)} {plugins.HELP}",
            "call",  # `recipe` adds its name, and the identity of a plug-in
            metavar=plugins.metavar(ESTIMATORS),
            choices=tuple(ESTIMATORS),
            check=partial(plugins.problem, group=plugins.ESTIMATORS, own=ESTIMATORS),
        ),
    ] = "rloo"
    outcome_coef: Annotated[float, Option("Weight of the outcome reward; 0 leaves it out.")] = 1.0
    process_coef: Annotated[float, Option("Weight of the process rewards; 0 leaves them out.")] = 1.0
    outcome_gamma: Annotated[
        float,
        Option("Discount per token of the outcome reward, which the last token receives.", min=0.0, max=1.0),
    ] = 1.0
    process_gamma: Annotated[float, Option("Discount per token of the process rewards.", min=0.0, max=1.0)] = 1.0
    lam: Annotated[float, Option("gae: its lambda; 1 trusts the rewards, 0 the critic.", min=0.0, max=1.0)] = 0.95
    granularity: Annotated[
        Granularity,
        Option(
            "token: every token has its process reward; step, whole: the last token of each step, or of the response, "
            "has their sum."
        ),
    ] = Granularity.token
    step_separator: StepSeparator = "\\n"
    tokenizer: Annotated[
        str | None,
        Option(
            "For --granularity step: the tokenizer, which finds the separators.  [default: that of the model that "
            "generate recorded in the shards]",
            "call",
            metavar="DIR|HUB_ID",
        ),
    ] = None
    process_clip: Annotated[
        float | None,
        Option(
            "Limit the process reward of each token to between -X and X, before anything else. Where the reference "
            "finds a token impossible, the PRM's reward for it has no bound.  [default: no limit]",
            metavar="X",
            check=positive,
        ),
    ] = None
    process_form: Annotated[
        str,
        Option(
            f"What process rewards become before they are compared. {choices_help(PROCESS_FORMS)}",
            choices=tuple(PROCESS_FORMS),
        ),
    ] = "plain"
    process_temperature: Annotated[
        float | None,
        Option(
            "Temperature of the softmax of --process-form, in units of the process rewards.  [default: 1 for "
            "redistributed, 0.1 for min]",
            check=positive,
        ),
    ] = None
    process_norm: Annotated[
        ProcessNorm, Option("batch: divide process rewards by the largest |reward-to-go| of the batch.")
    ] = ProcessNorm.batch
    process_baseline: Annotated[
        ProcessBaseline,
        Option(
            "What process rewards are compared with. paper: the mean rewards of the responses, as --estimator does; "
            "recipe (rloo): as PRIME's first code and verl; per-token (rloo): the others' reward per token, times the "
            "tokens of the step; pooled: all tokens or steps of the group, each like a response's outcome; values: "
            "minus their mean over the group, divided by the deviation of the running sums; position: running sums, "
            "with those of the group at the same token or step."
        ),
    ] = ProcessBaseline.paper
    process_lambda: Annotated[
        float,
        Option(
            "Discount of the process rewards per token or step, as --granularity has it, besides --process-gamma; 0 "
            "credits every token with its own or its step's reward alone.",
            min=0.0,
            max=1.0,
        ),
    ] = 1.0
    process_share: Annotated[
        float | None,
        Option(
            "Weight process rewards so that they take this share of the advantages' variance, from 0 to 1, whatever "
            "their scale.  [default: --process-coef is their weight]",
            min=0.0,
            max=1.0,
        ),
    ] = None
    process_trust: Annotated[
        bool,
        Option(
            "Multiply --process-share by max(0, 2 * pair accuracy - 1), of the pairs that update-prm measured before "
            "it trained the PRM on them; 0 for a PRM that was never updated."
        ),
    ] = False
    drop_last_token_reward: Annotated[bool, Option("Leave out the last token's process reward, as verl does.")] = False
    whiten: Annotated[
        bool,
        Option(
            "Scale advantages to mean 0 and variance 1 over all response tokens of the batch.",
            flags="--whiten/--no-whiten",
        ),
    ] = True

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        if not self.outcome_coef and not self.process_coef:
            raise UsageError("--outcome-coef and --process-coef are both 0: nothing is rewarded")
        if self.estimator == "gae" and self.outcome_gamma != self.process_gamma:
            raise UsageError(
                f"--estimator gae needs a single discount, but --outcome-gamma is {self.outcome_gamma:g} and "
                f"--process-gamma {self.process_gamma:g}",
                "a critic predicts one return: set both to the same value",
            )
        if self.estimator in WHITENED and not self.whiten:
            raise UsageError(
                f"--estimator {self.estimator} consists in whitening, but --no-whiten turns it off",
                "reinforce and dr-grpo are the same without it",
            )
        plugin = self.plugin()
        if plugin is not None:
            plugin.load()
        self._check_process_rewards_used()
        self._check_form()
        self._check_baseline()
        self._check_lambda()
        self._check_share()
        self.separator()

    def _check_process_rewards_used(self) -> None:
        for option, given in (
            ("--process-clip", self.process_clip is not None),
            (f"--process-form {self.process_form}", self.process_form != "plain"),
            (f"--process-baseline {self.process_baseline}", self.process_baseline in ADDED_BASELINES),
            ("--process-lambda", self.process_lambda != 1.0),
            ("--process-share", self.process_share is not None),
        ):
            if given and not self.process_coef:
                raise UsageError(
                    f"{option} is about process rewards, but --process-coef 0 leaves them out",
                    "leave out one of the two",
                )

    def _check_form(self) -> None:
        if self.process_form in TEMPERATURES and self.granularity is Granularity.whole:
            raise UsageError(
                f"--process-form {self.process_form} weighs the steps of a response against each other, but with "
                "--granularity whole it has only one",
                "choose --granularity token or step",
            )
        if self.process_temperature is not None and self.process_form not in TEMPERATURES:
            raise UsageError(
                f"--process-temperature is that of a softmax, and --process-form {self.process_form} has none",
                "leave it out, or choose --process-form redistributed or min",
            )

    def _check_baseline(self) -> None:
        baseline = self.process_baseline
        if baseline in ("recipe", "per-token") and self.estimator != "rloo":
            raise UsageError(f"--process-baseline {baseline} works with --estimator rloo, not with {self.estimator}")
        if baseline in ADDED_BASELINES and self.estimator in WITHOUT_BASELINE:
            raise UsageError(
                f"--process-baseline {baseline} compares the responses of a group, and --estimator {self.estimator} "
                "does not",
                "choose another estimator, such as rloo or grpo",
            )
        if baseline in ("pooled", "position") and self.estimator == "maxrl":
            raise UsageError(
                f"--process-baseline {baseline} treats process rewards like outcomes, and maxrl would divide them by "
                "their mean, which may be of any sign",
                "choose --process-baseline paper or values, or another estimator",
            )
        if baseline == "position":
            if self.granularity is Granularity.whole:
                raise UsageError(
                    "--process-baseline position compares tokens or steps, but with --granularity whole a response has "
                    "one position",
                    "choose --granularity token or step",
                )
            if self.process_gamma != 1.0 or self.process_lambda != 1.0:
                raise UsageError(
                    "--process-baseline position credits a token with the rewards up to it, and --process-gamma and "
                    "--process-lambda discount those after it",
                    "leave them at 1, or choose another baseline",
                )

    def _check_lambda(self) -> None:
        if self.process_lambda == 1.0:
            return
        if self.estimator == "gae":
            raise UsageError(
                "--process-lambda is not for --estimator gae, which has one lambda for both rewards", "set --lam"
            )
        if self.granularity is Granularity.whole:
            raise UsageError(
                "--process-lambda discounts from step to step, but with --granularity whole a response has one reward",
                "choose --granularity token or step",
            )

    def _check_share(self) -> None:
        if self.process_trust and self.process_share is None:
            raise UsageError(
                "--process-trust multiplies --process-share, which is not given", "give it, such as --process-share 0.5"
            )
        if self.process_share is None:
            return
        if self.process_coef != 1.0 or not self.outcome_coef:
            what = "--outcome-coef 0 leaves out the other source" if not self.outcome_coef else "so does --process-coef"
            raise UsageError(
                f"--process-share decides the weight of process rewards against outcomes, but {what}",
                "leave out one of the two",
            )
        if self.estimator == "gae":
            raise UsageError(
                "--process-share weights process rewards anew in every batch, and the critic of --estimator gae "
                "predicts one return",
                "set --process-coef",
            )

    def plugin(self) -> plugins.Plugin | None:
        """The plug-in that --estimator names, if it names one."""
        return plugins.find(self.estimator, plugins.ESTIMATORS, ESTIMATORS)

    def separator(self) -> str | None:
        """The text between two steps; None unless the granularity is step."""
        return separator(self.step_separator) if self.granularity is Granularity.step else None

    def temperature(self) -> float | None:
        """The temperature of the form's softmax; None for a form without one."""
        return self.process_temperature or TEMPERATURES.get(self.process_form)

    def needs_outcomes(self) -> bool:
        """Whether outcome rewards are read, if only to transform or weight process rewards."""
        return bool(self.outcome_coef) or self.process_form in FORMS_BY_OUTCOME or self.estimator == "maxrl"

    def recipe(self) -> dict[str, Json]:
        """Records options that others make meaningless as null, so that they do not change the fingerprint.

        Those about process rewards that came later are recorded where they differ from the default only, so that older
        results stay valid.
        """
        plugin = self.plugin()
        recipe = {
            **super().recipe(),
            **({"estimator": self.estimator} if plugin is None else plugin.recorded("estimator")),
            "lam": self.lam if self.estimator == "gae" else None,
            "step_separator": self.separator(),
            "process_temperature": self.temperature(),
        }
        return {name: value for name, value in recipe.items() if name not in LATER or value != LATER[name]}
