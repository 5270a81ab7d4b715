"""The commands of primecli, each named once: the command line, warm, the run reader, the loggers and others read this.

A new command is a file in commands/ and a line here; a new stage also has a file in stages/. Standard library only and
without `typing`: every start of primecli waits for this file.
"""

from __future__ import annotations

TYPE_CHECKING = False  # that of typing, without importing it
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal


class Command:
    """A command as the other parts of primecli need to know it.

    name: as typed in a shell; its module in commands/, and its function there, have `_` for `-`.
    summary: its line in `primecli --help`, the first of its own page.
    writes: what a stage of the training loop writes; None for a command outside the loop.
    torch: whether it needs torch, and so gains from `primecli warm`.
    models: the option that names the model of each role that it uses, such as {"policy": "--model"}.
    """

    __slots__ = ("models", "name", "summary", "torch", "writes")

    def __init__(
        self,
        name: str,
        summary: str,
        writes: Literal["shards", "checkpoint"] | None = None,
        *,
        torch: bool = False,
        models: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.summary = summary
        self.writes = writes
        self.torch = torch
        self.models = models or {}

    @property
    def module(self) -> str:
        """The name of its module in commands/, and in stages/ where it is a stage."""
        return self.name.replace("-", "_")

    @property
    def forked(self) -> bool:
        """Whether `primecli warm` starts it from its helper."""
        return self.torch or self.writes is not None

    @property
    def trains(self) -> str | None:
        """The role of the model that an update trains: `policy` for update-policy; None for all others."""
        return self.name.removeprefix("update-") if self.writes == "checkpoint" else None


COMMANDS = (
    # the stages of the loop, in the order of an iteration
    Command(
        "generate",
        "Sample responses: prompts in, rollout shards out.",
        "shards",
        torch=True,
        models={"policy": "model"},
    ),
    Command("verify", "Grade responses: outcome rewards.", "shards"),
    Command("filter", "Keep the groups worth learning from, whole.", "shards"),
    Command(
        "update-prm",
        "Train the process reward model on outcomes.",
        "checkpoint",
        torch=True,
        models={"prm": "prm", "ref": "ref_model"},
    ),
    Command(
        "score-prm",
        "Give every token its process reward.",
        "shards",
        torch=True,
        models={"prm": "prm", "ref": "ref_model"},
    ),
    Command(
        "score-values",
        "Give every token its value: what a critic expects from there on.",
        "shards",
        torch=True,
        models={"critic": "critic"},
    ),
    Command("compute-advantages", "Turn rewards into token advantages.", "shards", torch=True),
    Command(
        "update-critic",
        "Train the critic of PPO on returns.",
        "checkpoint",
        torch=True,
        models={"critic": "critic"},
    ),
    Command(
        "update-policy",
        "Train the policy on the advantages.",
        "checkpoint",
        torch=True,
        models={"policy": "policy", "ref": "ref_model"},
    ),
    # looking at what there is, and what stands around the loop
    Command("inspect", "Show rollouts, their tokens coloured by reward."),
    Command("stats", "Summarise shards: accuracy, pass@k, verdicts, lengths, rewards."),
    Command("query", "Query shards with SQL."),
    Command("lineage", "Show what made a shard or a checkpoint."),
    Command("validate", "Check shards: types, list lengths, complete groups, finite numbers, provenance."),
    Command("audit", "Check whether the process reward is being gamed."),
    Command(
        "check-logprobs",
        "Compare the sampler's log-probabilities with the trainer's.",
        torch=True,
        models={"policy": "model"},
    ),
    Command("report", "Report on runs, as a single page or as Markdown."),
    Command("watch", "Follow a run in the terminal: its numbers, the running stages, the time left."),
    Command("doctor", "Check that everything works here: versions, devices, disk space, sandbox, extras."),
    Command("init", "Write a Makefile and an options file for a run with your own model."),
    Command("warm", "Run a command whose stages start in a fraction of a second."),
)

NAMES = tuple(command.name for command in COMMANDS)

STAGES = tuple(command.name for command in COMMANDS if command.writes)
"""The stages of the training loop, in the order of an iteration."""

SHARD_STAGES = tuple(command.name for command in COMMANDS if command.writes == "shards")
"""The stages that write shards, in the order in which columns are added."""


def command(name: str) -> Command | None:
    """The command of that name; None where there is none, as for a stage that another tool recorded."""
    return next((command for command in COMMANDS if command.name == name), None)
