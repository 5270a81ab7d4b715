"""The options of update-policy's loss, what it refuses, and how the update is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated

from primecli import plugins
from primecli.core.registry import POLICY_LOSSES, PolicyLossEntry, choices_help
from primecli.errors import UsageError
from primecli.files import Json
from primecli.options import Option, Options, declarations, positive
from primecli.training.options import FROM_SHARDS, LossAggregation


class RatioLevel(StrEnum):
    """What a ratio between the trainer's and the sampler's probabilities is of."""

    token = "token"
    sequence = "sequence"
    geometric = "geometric"
    arithmetic = "arithmetic"


def _defaults(side: int) -> str:
    """The defaults of --clip-low (0) or --clip-high (1), by loss, for the help page."""
    return ", ".join(f"{name} {entry.clip[side]:g}" for name, entry in POLICY_LOSSES.items() if entry.clip)


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options):
    """Which loss, and the bounds and settings of it."""

    policy_loss: Annotated[
        str,
        Option(
            f"{choices_help(POLICY_LOSSES)} {plugins.HELP}",
            metavar=plugins.metavar(POLICY_LOSSES),
            choices=tuple(POLICY_LOSSES),
            check=partial(plugins.problem, group=plugins.POLICY_LOSSES, own=POLICY_LOSSES),
        ),
    ] = "ppo"
    loss_aggregation: Annotated[
        LossAggregation | None,
        Option(
            "The loss of a mini-batch: the mean over its tokens, or the mean over responses of their sums or means.  "
            "[default: seq-mean-token-mean for gspo, sapo and gmpo, else token-mean]"
        ),
    ] = None
    clip: Annotated[
        bool, Option("Clip the ratio, as in PPO, or use the plain surrogate.", flags="--clip/--no-clip")
    ] = True
    clip_low: Annotated[
        float | None,
        Option(
            "Clip the ratio at 1 minus this; dppo: bound the fall of the probability, gmpo: of the log-ratio.  "
            f"[default: {_defaults(0)}]",
            min=0.0,
            max=1.0,
        ),
    ] = None
    clip_high: Annotated[
        float | None,
        Option(
            "Clip the ratio at 1 plus this, likewise; larger than --clip-low is clip-higher.  "
            f"[default: {_defaults(1)}]",
            min=0.0,
        ),
    ] = None
    dual_clip: Annotated[
        float | None,
        Option("ppo, gspo: for a negative advantage, limit the loss to this multiple of it.  [default: off]", min=1.0),
    ] = None
    tau_positive: Annotated[
        float | None,
        Option(
            "sapo: how fast the gate closes for positive advantages as the ratio leaves 1.  [default: 1]",
            check=positive,
        ),
    ] = None
    tau_negative: Annotated[
        float | None, Option("sapo: the same for negative advantages.  [default: 1.05]", check=positive)
    ] = None
    ratio_cap: Annotated[
        float | None, Option("dppo: the largest ratio that a token is weighted with.  [default: 20]", min=1.0)
    ] = None

    def check(self) -> None:
        """Raises UsageError for options that the loss does not have."""
        super().check()
        plugin = self.plugin()
        if plugin is not None:
            plugin.load()
        entry = self.entry()
        if entry.clip is None:
            for option, given in (
                ("--no-clip", not self.clip),
                ("--clip-low", self.clip_low is not None),
                ("--clip-high", self.clip_high is not None),
            ):
                if given:
                    raise UsageError(
                        f"{option} makes no difference to --policy-loss {self.policy_loss}, which clips nothing"
                    )
        for name in _SETTINGS:
            if getattr(self, name) is not None and name not in entry.settings:
                owners = [loss for loss, other in POLICY_LOSSES.items() if name in other.settings]
                raise UsageError(
                    f"--{name.replace('_', '-')} belongs to --policy-loss {' and '.join(owners)}, not to "
                    f"{self.policy_loss}"
                )

    def plugin(self) -> plugins.Plugin | None:
        """The plug-in that --policy-loss names, if it names one."""
        return plugins.find(self.policy_loss, plugins.POLICY_LOSSES, POLICY_LOSSES)

    def entry(self) -> PolicyLossEntry:
        """What the registry says of the loss; a plug-in has PPO's bounds and aggregation, and no settings."""
        return POLICY_LOSSES.get(self.policy_loss, PolicyLossEntry(self.policy_loss, "a plug-in"))

    def aggregation(self) -> LossAggregation:
        """How the losses of tokens are aggregated."""
        return self.loss_aggregation or LossAggregation(self.entry().aggregation)

    def bounds(self) -> dict[str, float]:
        """The bounds of the loss by the names of their options, whether or not it clips; empty for one without."""
        clip = self.entry().clip
        if clip is None:
            return {}
        given = (self.clip_low, self.clip_high)
        low, high = (default if value is None else value for value, default in zip(given, clip, strict=True))
        return {"clip_low": low, "clip_high": high}

    def settings(self) -> dict[str, float | None]:
        """The options that this loss has and others have not, by name."""
        defaults = self.entry().settings
        given = {name: getattr(self, name) for name in defaults}
        return {name: default if given[name] is None else given[name] for name, default in defaults.items()}

    def loss_arguments(self) -> dict[str, float | None]:
        """The keyword arguments of the loss's function."""
        arguments = {**self.bounds(), **self.settings()}
        unclipped = {"clip_low": math.inf, "clip_high": math.inf, "dual_clip": None}
        return (
            arguments
            if self.clip
            else {**arguments, **{name: unclipped[name] for name in unclipped if name in arguments}}
        )


@dataclass(frozen=True, kw_only=True)
class CorrectionOptions(Options):
    """Corrections for rollouts that another distribution sampled than the trainer's."""

    tis_cap: Annotated[
        float | None,
        Option(
            "Weight each token by the trainer's over the sampler's probability, capped at this.  [default: off]",
            min=1.0,
        ),
    ] = None
    tis_floor: Annotated[
        float, Option("With --tis-cap: the smallest weight that a token can have.", min=0.0, max=1.0)
    ] = 0.0
    tis_level: Annotated[
        RatioLevel,
        Option(
            "With --tis-cap: the ratio of each token; or of its response: sequence is the product of its tokens' "
            "ratios, geometric and arithmetic are their mean."
        ),
    ] = RatioLevel.token
    mismatch_band: Annotated[
        tuple[float, float] | None,
        Option(
            "Leave tokens out of the loss if the trainer's over the sampler's probability is outside these bounds.  "
            "[default: off]",
            metavar="LO HI",
        ),
    ] = None
    mismatch_level: Annotated[
        RatioLevel, Option("With --mismatch-band: whose ratio it is about, as for --tis-level.")
    ] = RatioLevel.token
    off_policy_mask: Annotated[
        float | None,
        Option(
            "Leave out tokens with a negative advantage in responses whose mean log-probability has fallen by more "
            "than this many nats since they were sampled.  [default: off]",
            min=0.0,
        ),
    ] = None

    def check(self) -> None:
        """Raises UsageError for options without the one that they belong to, and for impossible bounds."""
        super().check()
        _needs(self, "--tis-cap", self.tis_cap, ("tis_floor", "tis_level"))
        _needs(self, "--mismatch-band", self.mismatch_band, ("mismatch_level",))
        if self.mismatch_band is not None:
            low, high = self.mismatch_band
            if not 0 <= low < high < math.inf:
                raise UsageError(f"--mismatch-band {low:g} {high:g}: give two bounds of a ratio, the lower one first")

    def against_sampler(self) -> tuple[tuple[str, bool], ...]:
        """The options that compare the trainer's probabilities with the sampler's, and whether each was given."""
        return (("--tis-cap", self.tis_cap is not None), ("--mismatch-band", self.mismatch_band is not None))


@dataclass(frozen=True, kw_only=True)
class CovarianceOptions(Options):
    """Clip-Cov and KL-Cov, which keep the policy's entropy up."""

    clip_cov: Annotated[
        float | None,
        Option(
            "Leave out this share of a mini-batch's tokens, drawn from those with a large covariance of advantage and "
            "log-probability, such as 0.0002. Costs a forward pass per step.  [default: off]",
            max=1.0,
            check=positive,
        ),
    ] = None
    clip_cov_band: Annotated[
        tuple[float, float], Option("With --clip-cov: which covariances are large.", metavar="LO HI")
    ] = (1.0, 5.0)
    kl_cov: Annotated[
        float | None,
        Option(
            "Hold this share of a mini-batch's tokens, those with the largest covariance, to their old probability, "
            "such as 0.002. Costs a forward pass per step.  [default: off]",
            max=1.0,
            check=positive,
        ),
    ] = None
    kl_cov_coef: Annotated[float, Option("With --kl-cov: weight of the penalty.", min=0.0)] = 1.0

    def check(self) -> None:
        """Raises UsageError for options without the one that they belong to, and for impossible bounds."""
        super().check()
        _needs(self, "--clip-cov", self.clip_cov, ("clip_cov_band",))
        _needs(self, "--kl-cov", self.kl_cov, ("kl_cov_coef",))
        low, high = self.clip_cov_band
        if not -math.inf < low < high < math.inf:
            raise UsageError(f"--clip-cov-band {low:g} {high:g}: give two bounds, the lower one first")

    def by_covariance(self) -> bool:
        """Whether a step needs the covariances of its whole mini-batch before its first micro-batch."""
        return self.clip_cov is not None or self.kl_cov is not None


def _needs(options: Options, needed: str, value: object, names: tuple[str, ...]) -> None:
    for name in names:
        if value is None and getattr(options, name) != declarations(type(options))[name].default:
            raise UsageError(f"--{name.replace('_', '-')} needs {needed}")


class OldLogprobsSource(StrEnum):
    """Where the old log-probabilities of the probability ratio come from."""

    recompute = "recompute"
    rollout = "rollout"


class Kl(StrEnum):
    """How the KL to the reference is estimated."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(LossOptions, CorrectionOptions, CovarianceOptions):
    """The loss of the policy, what it refuses, and how the update is measured."""

    ref: Annotated[
        str | None,
        Option(
            "Reference model of the KL; shards: use the ref_logprobs that score-prm stored.  [default: none]",
            "call",
            metavar="DIR|HUB_ID|shards",
        ),
    ] = None
    kl_coef: Annotated[float, Option("Weight of the KL to --ref in the loss.", min=0.0)] = 0.0
    kl: Annotated[Kl, Option("Estimator of that KL; as a loss, k1 has no effect on average.")] = Kl.k3
    entropy_coef: Annotated[float, Option("Weight of the entropy bonus in the loss.")] = 0.0
    old_logprobs: Annotated[
        OldLogprobsSource,
        Option(
            "Where the ratio's old log-probabilities come from. recompute: from the trainer, before its first step; "
            "rollout: from the sampler, which saves a forward pass."
        ),
    ] = OldLogprobsSource.recompute
    max_logprob_gap: Annotated[
        float | None,
        Option(
            "Stop with exit code 5 and write no checkpoint if the mean gap between the sampler's and the trainer's "
            "log-probabilities is larger than this many nats.  [default: no limit]",
            "execution",
            min=0.0,
        ),
    ] = None
    strict: Annotated[
        bool, Option("Refuse rollouts that were sampled with top-p or top-k, instead of warning.", "call")
    ] = False
    max_staleness: Annotated[
        int, Option("Refuse rollouts that were sampled more than this many updates ago.", "execution", min=0)
    ] = 0
    measure: Annotated[
        int, Option("Measure the finished update on this many responses; 0 for none.", "execution", min=0)
    ] = 64

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        if self.kl_coef and self.ref is None:
            raise UsageError("--kl-coef needs a reference", "name it with --ref, or use score-prm's with --ref shards")
        if self.old_logprobs == "rollout":
            compared = [*self.against_sampler(), ("--max-logprob-gap", self.max_logprob_gap is not None)]
            for option in (option for option, given in compared if given):
                raise UsageError(
                    f"{option} compares the trainer's log-probabilities with the sampler's, but --old-logprobs rollout "
                    "uses the sampler's for both",
                    "leave --old-logprobs at recompute",
                )

    def recipe(self) -> dict[str, Json]:
        """Adds the kind of reference: none, shards, or a model, whose fingerprint is recorded separately.

        Options that came later are left out where they have their defaults, so that earlier results stay valid.
        """
        recipe = {**super().recipe(), "ref": self.ref if self.ref in (None, FROM_SHARDS) else "model"}
        declared = declarations(type(self))
        for name in _LATER:
            if getattr(self, name) == declared[name].default:
                del recipe[name]
        clip: dict[str, Json] = {"clip_low": None, "clip_high": None, **self.bounds()}
        plugin = self.plugin()
        loss = {} if plugin is None else plugin.recorded("policy_loss")
        return {**recipe, **loss, "loss_aggregation": self.aggregation().value, **clip, **self.settings()}

    def execution(self) -> dict[str, Json]:
        """Adds the reference as the user named it."""
        return {**super().execution(), "ref_model": self.ref}


_SETTINGS = ("dual_clip", "tau_positive", "tau_negative", "ratio_cap")
_LATER = (
    *("policy_loss", "tau_positive", "tau_negative", "ratio_cap"),
    *("tis_floor", "tis_level", "mismatch_band", "mismatch_level", "off_policy_mask"),
    *("clip_cov", "clip_cov_band", "kl_cov", "kl_cov_coef"),
)
