"""Which combinations of options have a meaning, and what is hashed of them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from primecli.core.registry import ESTIMATORS, PROCESS_FORMS
from primecli.errors import UsageError
from primecli.training.advantage_options import AdvantageOptions, Granularity, ProcessBaseline


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"process_form": "min", "granularity": "whole"}, "has only one"),
        ({"process_form": "redistributed", "granularity": "whole"}, "has only one"),
        ({"process_form": "wrong-centered", "process_coef": 0.0}, "--process-coef 0 leaves them out"),
        ({"process_baseline": "pooled", "process_coef": 0.0}, "--process-coef 0 leaves them out"),
        ({"process_share": 0.5, "process_coef": 0.0}, "--process-coef 0 leaves them out"),
        ({"process_clip": 0.5, "process_coef": 0.0}, "--process-coef 0 leaves them out"),
        ({"process_temperature": 0.5}, "plain has none"),
        ({"process_temperature": 0.5, "process_form": "wrong-centered"}, "wrong-centered has none"),
        ({"process_baseline": "per-token", "estimator": "grpo"}, "works with --estimator rloo"),
        ({"process_baseline": "pooled", "estimator": "reinforce"}, "choose another estimator"),
        ({"process_baseline": "values", "estimator": "gae"}, "choose another estimator"),
        ({"process_baseline": "pooled", "estimator": "maxrl"}, "may be of any sign"),
        ({"process_baseline": "position", "granularity": "whole"}, "one position"),
        ({"process_baseline": "position", "process_gamma": 0.9}, "leave them at 1"),
        ({"process_baseline": "position", "process_lambda": 0.9}, "leave them at 1"),
        ({"process_lambda": 0.9, "estimator": "gae"}, "set --lam"),
        ({"process_lambda": 0.9, "granularity": "whole"}, "has one reward"),
        ({"process_trust": True}, "--process-share, which is not given"),
        ({"process_share": 0.5, "process_coef": 2.0}, "so does --process-coef"),
        ({"process_share": 0.5, "outcome_coef": 0.0}, "leaves out the other source"),
        ({"process_share": 0.5, "estimator": "gae"}, "predicts one return"),
        ({"estimator": "reinforce++", "whiten": False}, "--no-whiten turns it off"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        made(**options).check()
    assert words in f"{raised.value.message} {raised.value.hint}"
    assert "\n" not in raised.value.message


def made(**options: Any) -> AdvantageOptions:
    for name, kind in (("granularity", Granularity), ("process_baseline", ProcessBaseline)):
        if name in options:
            options[name] = kind(options[name])
    return AdvantageOptions(**options)


def test_forms_go_with_every_estimator_and_granularity_that_has_steps() -> None:
    for form, name, granularity in product(PROCESS_FORMS, ESTIMATORS, ["token", "step"]):
        made(process_form=form, estimator=name, granularity=granularity).check()


def test_only_what_was_chosen_is_hashed() -> None:
    plain = made().recipe()
    assert not [
        name
        for name in plain
        if name.startswith(("process_form", "process_lambda", "process_s", "process_t", "process_clip"))
    ]
    chosen = {"process_form": "min", "process_lambda": 0.9, "process_share": 0.3, "process_trust": True}
    added = made(**chosen, process_clip=2.0).recipe()
    assert {name: value for name, value in added.items() if name not in plain} == {
        "process_form": "min",
        "process_temperature": 0.1,
        "process_lambda": 0.9,
        "process_share": 0.3,
        "process_trust": True,
        "process_clip": 2.0,
    }


def test_the_default_temperature_is_the_forms() -> None:
    assert made(process_form="min", process_temperature=0.1).recipe() == made(process_form="min").recipe()
    assert [made(process_form=form).temperature() for form in PROCESS_FORMS] == [None, 1.0, 0.1, None]
