"""The layouts in which other trainers read rollouts."""

from __future__ import annotations

from enum import StrEnum


class Layout(StrEnum):
    """What a line of the file is.

    trl: a response: `prompt`, `completion` and, where it is graded, `label` and `reward`.
    trl_preference: a right and a wrong response to one prompt: `prompt`, `chosen`, `rejected`.
    trl_steps: a response in steps: `prompt`, `completions`, `labels`, up to the first wrong step.
    verl: a prompt: `data_source`, `prompt`, `ability`, `reward_model`, `extra_info`.
    """

    trl = "trl"
    trl_preference = "trl-preference"
    trl_steps = "trl-steps"
    verl = "verl"
