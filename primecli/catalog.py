"""The commands of primecli, each named once: for the command line, warm, the run reader, the loggers and others.

A new command is a file in commands/ and a line here; a new stage also has a file in stages/. Imports nothing, not even
`typing`: every start of primecli waits for this file.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know this name; typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

KEYWORDS = ("import",)  # of Python, among the names


class Command:
    """What the other parts of primecli know of a command.

    name: as typed in a shell; see `module`.
    summary: its line in `primecli --help`, which is also the first line of its own help page.
    writes: what it writes, if it is a stage; None for other commands.
    torch: whether it needs torch, so that `primecli warm` saves time.
    models: for each role of the models it uses, the key under which its recorded options name the model, such as
        {"policy": "model"}.
    in_loop: whether it is a stage of the training loop; False for one that takes a stage's place outside of it.
    """

    __slots__ = ("in_loop", "models", "name", "summary", "torch", "writes")

    def __init__(
        self,
        name: str,
        summary: str,
        writes: Literal["shards", "checkpoint"] | None = None,
        *,
        torch: bool = False,
        models: Mapping[str, str] | None = None,
        in_loop: bool = True,
    ) -> None:
        self.name = name
        self.summary = summary
        self.writes = writes
        self.torch = torch
        self.models = models or {}
        self.in_loop = in_loop

    @property
    def module(self) -> str:
        """The name of its module in commands/ and, for a stage, in stages/, and of the function in either.

        It has `_` in place of `-`, and `_` after a word that Python keeps for itself.
        """
        return self.name.replace("-", "_") + ("_" if self.name in KEYWORDS else "")

    @property
    def forked(self) -> bool:
        """Whether the helper of `primecli warm` starts it."""
        return self.torch or self.writes is not None

    @property
    def trains(self) -> str | None:
        """The role of the model that an update trains, such as `policy` for update-policy; None for other commands."""
        return self.name.removeprefix("update-") if self.writes == "checkpoint" else None


COMMANDS = (
    # the stages of the training loop, in the order of an iteration; `import` takes the place of the first two
    Command("import", "Make rollout shards from labelled responses.", "shards", in_loop=False),
    Command(
        "generate",
        "Sample responses: prompts in, rollout shards out.",
        "shards",
        torch=True,
        models={"policy": "model"},
    ),
    Command("verify", "Grade responses with outcome rewards.", "shards"),
    Command("filter", "Keep the groups worth learning from.", "shards"),
    Command(
        "update-prm",
        "Train the process reward model on outcomes.",
        "checkpoint",
        torch=True,
        models={"prm": "prm", "ref": "ref_model"},
    ),
    Command(
        "score-prm",
        "Compute the process reward of every token.",
        "shards",
        torch=True,
        models={"prm": "prm", "ref": "ref_model"},
    ),
    Command(
        "score-values",
        "Compute the value of every token: the return that a critic expects from there on.",
        "shards",
        torch=True,
        models={"critic": "critic"},
    ),
    Command("compute-advantages", "Turn rewards into token advantages.", "shards", torch=True),
    Command(
        "update-critic",
        "Train PPO's critic on returns.",
        "checkpoint",
        torch=True,
        models={"critic": "critic"},
    ),
    Command(
        "update-policy",
        "Train the policy on advantages.",
        "checkpoint",
        torch=True,
        models={"policy": "policy", "ref": "ref_model"},
    ),
    # commands to look at rollouts and runs, and to set them up
    Command("inspect", "Show rollouts, their tokens coloured by reward."),
    Command("stats", "Summarise shards: accuracy, pass@k, verdicts, lengths, rewards."),
    Command("evaluate", "Evaluate a policy: avg@n, pass@k, maj@k, best-of-k, with intervals."),
    Command("query", "Query shards with SQL."),
    Command("export", "Write rollouts as JSON lines for other trainers: TRL, verl."),
    Command("lineage", "Show what made a shard or a checkpoint."),
    Command("validate", "Check shards: types, list lengths, complete groups, finite numbers, provenance."),
    Command("audit", "Check whether the process reward is being gamed."),
    Command(
        "check-logprobs",
        "Compare the sampler's log-probabilities with the trainer's.",
        torch=True,
        models={"policy": "model"},
    ),
    Command("prepare", "Prepare prompts: one clean file, with duplicates and contamination marked."),
    Command("report", "Report on runs, as a single page or as Markdown."),
    Command("watch", "Follow a run in the terminal: its numbers, the running stages, the time left."),
    Command("doctor", "Check that everything works here: versions, devices, disk space, sandbox, extras."),
    Command("init", "Write a Makefile and an options file for a run with your own model."),
    Command("warm", "Run a command whose stages start in a fraction of a second."),
)

NAMES = tuple(command.name for command in COMMANDS)

STAGES = tuple(command.name for command in COMMANDS if command.writes and command.in_loop)
"""The stages of the training loop, in the order of an iteration."""

SHARD_STAGES = tuple(command.name for command in COMMANDS if command.writes == "shards")
"""The stages that write shards, `import` among them, in the order in which they add columns."""


def command(name: str) -> Command | None:
    """The command with this name; None if there is none, such as for a stage that another tool recorded."""
    return next((command for command in COMMANDS if command.name == name), None)
