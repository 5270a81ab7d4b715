"""What every command reads: a command line for each, and the files whose mutations it must withstand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import mutators, tables
from tests.fuzz.material import CPU, STAGES
from tests.fuzz.mutators import Mutator

KINDS: dict[str, Mutator] = {
    "prompts.jsonl": mutators.structured_lines,
    "prompts.jsonl.gz": mutators.structured_lines,
    "prompts.parquet": tables.columns,
    "texts.jsonl": mutators.structured_lines,
    "labelled.jsonl": mutators.structured_lines,
    "labelled.parquet": tables.columns,
    "shard bytes": tables.table_bytes,
    "shard footer": tables.footer,
    "shard columns": tables.columns,
    "_summary.json": mutators.structured_json,
    "_evaluation.json": mutators.structured_json,
    "config.json": mutators.structured_json,
    "generation_config.json": mutators.structured_json,
    "tokenizer_config.json": mutators.structured_json,
    "tokenizer.json": mutators.structured_json,
    "chat_template.jinja": mutators.template,
    "model.safetensors": mutators.tensor_header,
    "model.safetensors.index.json": mutators.structured_json,
    "primecli.json": mutators.structured_json,
    "steps.jsonl": mutators.structured_lines,
    "optimizer.safetensors": mutators.tensor_header,
    "master.safetensors": mutators.tensor_header,
    "primecli.toml": mutators.toml,
}
"""How a kind of file is changed."""

SHARDS = ("shard bytes", "shard footer", "shard columns", "_summary.json")
MODEL = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "model.safetensors",
)
TRAINER = ("primecli.json", "steps.jsonl", "optimizer.safetensors", "master.safetensors")


@dataclass(frozen=True, slots=True)
class Target:
    """A command and a kind of file that it reads.

    command: its name. kind: of `KINDS`. arguments: the command line, whose output is below `out`. path: of the file,
    relative to the material; a directory of shards for the first of them.
    """

    command: str
    kind: str
    arguments: tuple[str, ...]
    path: str

    @property
    def name(self) -> str:
        """Such as `filter: shard footer`."""
        return f"{self.command}: {self.kind}"

    @property
    def mutate(self) -> Mutator:
        """The change of the file."""
        return KINDS[self.kind]

    def file(self, directory: Path) -> Path:
        """The file to change."""
        path = directory / self.path
        return sorted(path.glob("*.parquet"))[0] if self.kind.startswith("shard") else path


def output(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The command line of a stage, its output below `out`."""
    words = list(arguments)
    for option in ("--out", "--checkpoint"):
        if option in words:
            words[words.index(option) + 1] = "out/made"
            return tuple(words)
    return (*words, "--out", "out/made")


COMMANDS: dict[str, tuple[str, ...]] = {
    **{name: output(arguments) for name, arguments in STAGES.items()},
    "import": output(("import", "labelled.jsonl", "--model", "policy/1", "--max-errors", "99")),
    "inspect": ("inspect", "1/compute-advantages", "--row", "3"),
    "stats": ("stats", "1/compute-advantages"),
    "evaluate": ("evaluate", "1/compute-advantages"),
    "export": output(("export", "1/compute-advantages", "--format", "trl")),
    "query": ("query", "1/compute-advantages", "SELECT * FROM rollouts"),
    "lineage": ("lineage", "1/compute-advantages", "--replay"),
    "validate": ("validate", "1/compute-advantages"),
    "audit": ("audit", "1/compute-advantages"),
    "check-logprobs": ("check-logprobs", "1/generate", "--model", "policy/1", *CPU),
    "report": ("report", ".", "--out", "out/report.html"),
    "watch": ("watch", ".", "--once"),
    "prepare": ("prepare", "prompts.jsonl", "--out", "out/prompts.parquet", "--workers", "1"),
    "doctor": ("doctor", "--no-iteration", "--config", "primecli.toml"),
    "init": ("init", "out/run", "--model", "model", "--prompts", "prompts.jsonl"),
    "warm": ("warm", "--config", "primecli.toml", "--", "true"),
}
"""A command line for every command."""

MODELS = {
    "generate": "policy/1",
    "score-prm": "prm/1",
    "score-values": "critic/1",
    "update-prm": "prm/1",
    "update-critic": "critic/1",
    "update-policy": "policy/1",
    "check-logprobs": "policy/1",
    "import": "policy/1",
}
"""The checkpoint that a command loads."""

READ = {
    "filter": "1/verify",
    "verify": "1/generate",
    "update-prm": "1/filter",
    "score-prm": "1/filter",
    "score-values": "1/score-prm",
    "compute-advantages": "1/score-values",
    "check-logprobs": "1/generate",
    "generate": None,
    "import": None,
    "watch": None,
    "prepare": None,
    "doctor": None,
    "init": None,
    "warm": None,
}
"""The shards that a command reads, if they are not those of compute-advantages."""


def targets() -> list[Target]:
    """Every command with every kind of file that it reads."""
    made: list[Target] = []
    for command, arguments in COMMANDS.items():
        shards = READ.get(command, "1/compute-advantages")
        if shards is not None:
            for kind in SHARDS:
                path = f"{shards}/{kind}" if kind == "_summary.json" else shards
                made.append(Target(command, kind, arguments, path))
        if command in MODELS:
            made += _of_model(command, arguments, MODELS[command])
        if command not in ("doctor", "warm"):
            arguments = (*arguments, "--config", "primecli.toml")
        if command != "query":  # whose last argument is the query; it takes the file as all do
            made.append(Target(command, "primecli.toml", arguments, "primecli.toml"))
    return made + _others()


def _of_model(command: str, arguments: tuple[str, ...], model: str) -> list[Target]:
    """A command with the files of the model that it loads."""
    made = [Target(command, kind, arguments, f"{model}/{kind}") for kind in MODEL]
    if command.startswith("update-"):
        made += [Target(command, kind, arguments, f"{model}/trainer/{kind}") for kind in TRAINER]
    else:
        made.append(Target(command, "primecli.json", arguments, f"{model}/trainer/primecli.json"))
    split = tuple("split" if word == model else word for word in arguments)
    kind = "model.safetensors.index.json"
    return [*made, Target(command, kind, split, f"split/{kind}")]


def _others() -> list[Target]:
    """Prompt files, and files that are read where one would not think of them."""
    generate = COMMANDS["generate"]
    made = []
    for kind in ("prompts.jsonl", "prompts.jsonl.gz", "prompts.parquet", "texts.jsonl"):
        arguments = tuple(kind if word == "prompts.jsonl" else word for word in generate)
        made.append(Target("generate", kind, arguments, kind))
    imported = "offline/score-prm"  # the only shards that say where steps end
    reading_steps = (
        ("evaluate", imported, "--step-labels"),
        ("evaluate", imported, "--select", "min"),
        ("audit", imported),
        ("inspect", imported, "--row", "3"),
        ("validate", imported),
        output(("compute-advantages", imported, "--granularity", "step", "--estimator", "reinforce")),
        output(("export", imported, "--format", "trl-steps")),
    )
    made += [Target(arguments[0], "shard columns", arguments, imported) for arguments in reading_steps]
    for kind in ("labelled.jsonl", "labelled.parquet"):
        arguments = tuple(kind if word == "labelled.jsonl" else word for word in COMMANDS["import"])
        made.append(Target("import", kind, arguments, kind))
        arguments = tuple(kind if word == "prompts.jsonl" else word for word in COMMANDS["prepare"])
        made.append(Target("prepare", kind, arguments, kind))
    with_rates = (*COMMANDS["prepare"], "--pass-rate", "1/verify", "--contamination", "texts.jsonl")
    for kind in SHARDS:
        path = f"1/verify/{kind}" if kind == "_summary.json" else "1/verify"
        made.append(Target("prepare", kind, with_rates, path))
    made.append(Target("prepare", "texts.jsonl", with_rates, "texts.jsonl"))
    made.append(Target("init", "prompts.jsonl", COMMANDS["init"], "prompts.jsonl"))
    for command in ("report", "watch"):
        made.append(Target(command, "_summary.json", COMMANDS[command], "policy/2/_summary.json"))
        made.append(Target(command, "_summary.json", COMMANDS[command], "1/generate/_summary.json"))
        made.append(Target(command, "_evaluation.json", COMMANDS[command], "1/verify/_evaluation.json"))
        made.append(Target(command, "steps.jsonl", COMMANDS[command], "policy/2/trainer/steps.jsonl"))
    for kind in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        made.append(Target("inspect", kind, COMMANDS["inspect"], f"policy/1/{kind}"))
        made.append(Target("report", kind, COMMANDS["report"], f"policy/1/{kind}"))
    made.append(Target("audit", "tokenizer.json", COMMANDS["audit"], "policy/1/tokenizer.json"))
    made.append(
        Target(
            "evaluate", "tokenizer.json", (*COMMANDS["evaluate"], "--tokenizer", "policy/1"), "policy/1/tokenizer.json"
        )
    )
    of_checkpoint = ("lineage", "policy/2")
    made += [
        Target("lineage", kind, of_checkpoint, f"policy/2/trainer/{kind}") for kind in ("primecli.json", "steps.jsonl")
    ]
    made.append(
        Target("lineage", "primecli.json", ("lineage", "policy/2", "--replay"), "policy/1/trainer/primecli.json")
    )
    made.append(Target("lineage", "shard footer", ("lineage", "policy/2", "--replay"), "1/compute-advantages"))
    return made
