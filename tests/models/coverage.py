"""Which architectures primecli works with: docs/models.md, which `make models` writes, and what its test covers.

Each is a tiny random model (`architectures.py`) that goes through the commands of a loop in this process. What they
compute is compared with a plain log_softmax of the model's own logits, one sequence at a time.

    python -m tests.models.coverage                   # writes the page: some minutes
    python -m tests.models.coverage "Gemma 2" Mamba   # prints the rows of some
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primecli import cli
from primecli.pipeline import pipe
from primecli.shards import schema
from tests.builders import write_shards
from tests.conftest import read_rows
from tests.models.architectures import ARCHITECTURES, BY_NAME, save
from tests.models.configs.common import Architecture

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- Written by `make models`: ", "<!-- The end of what `make models` writes. -->"
STEPS = ("generate", "check-logprobs", "score-prm", "update-policy", "update-prm", "critic", "LoRA", "packing")
HEADING = "architecture"
GAP = 1e-4  # nats: the most that a log-probability may be off by
BOUNDS = [factor * 10.0**power for power in range(-7, -3) for factor in (1, 2, 5)]  # that the page has in place of gaps
PROMPTS = ["12+34=", "7=", "What is 1+2+3+4+5?", "9-"]  # of several lengths, longer than windows and chunks
YES, SLOWER, PADDED, NO, LEFT = "yes", "slower", "padded", "no", ""


@dataclass
class Row:
    """What an architecture has shown.

    cells: `YES`, `SLOWER`, `PADDED`, `NO`, or `LEFT` where it was not tried, for each of `STEPS`.
    gap: the largest difference, in nats, between a log-probability of the sampler or of score-prm and a plain one.
    reasons: of what is not `YES`, by step.
    """

    architecture: Architecture
    cells: dict[str, str] = field(default_factory=lambda: dict.fromkeys(STEPS, LEFT))
    gap: float = math.nan
    reasons: dict[str, str] = field(default_factory=dict)

    def bound(self) -> str:
        """The gap as the page has it: the next of `BOUNDS`."""
        return next((f"{bound:.0e}" for bound in BOUNDS if self.gap <= bound), "" if math.isnan(self.gap) else "more")

    def line(self) -> str:
        """The row of the table."""
        one = self.architecture
        kinds = ", ".join(one.kinds) + (f"; {one.head} on logits" if one.head else "")
        return "| " + " | ".join([one.name, f"`{one.type}`", kinds, self.bound(), *self.cells.values()]) + " |"


def command(*arguments: object) -> str | None:
    """Runs a command in this process. Returns what it says is wrong, in one line; None where nothing is."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = cli.run([*map(str, arguments), "--quiet"])
    return None if code == 0 else " ".join(said.getvalue().split()) or f"exit code {code}"


def cover(architecture: Architecture, place: Path) -> Row:
    """Takes an architecture through all steps. place: an empty directory for what it leaves."""
    row = Row(architecture)
    try:
        model = save(architecture, place / "model")
    except Exception as error:  # whatever transformers raises for a model that it cannot make
        return _ended(row, "generate", f"transformers cannot make it: {error}", place)
    prompts = place / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in PROMPTS))
    sampled, graded = place / "generate", place / "graded"
    sampling = (
        "--model",
        model,
        "--prompts",
        prompts,
        "--n",
        4,
        "--max-tokens",
        24,
        "--engine",
        "hf",
        "--out",
        sampled,
    )
    if wrong := command("generate", *sampling):
        return _ended(row, "generate", wrong, place)
    _judge(row, "check-logprobs", command("check-logprobs", "--model", model, "--max-gap", GAP, sampled), place)
    _look(row, model)
    _grade(sampled, graded)
    packing = "on" if row.cells["packing"] == YES else "auto"
    scoring = ("--prm", model, "--ref", model, "--packing", packing)
    _judge(row, "score-prm", command("score-prm", *scoring, "--out", place / "scored", graded), place)
    if row.cells["score-prm"] == NO:
        return row
    _compare(row, model, read_rows(place / "scored"))
    update = ("--mini-batch", 8, "--lr", "1e-3", "--packing", packing)
    prm = ("update-prm", "--prm", model, "--ref", model, *update, "--checkpoint", place / "prm", graded)
    _judge(row, "update-prm", command(*prm), place)
    valued = command("score-values", "--critic", model, "--out", place / "valued", place / "scored")
    estimator = ("--estimator", "rloo" if valued else "gae")
    command("compute-advantages", *estimator, "--out", place / "advantages", place / ("scored" if valued else "valued"))
    critic = ("update-critic", "--critic", model, *update, "--checkpoint", place / "critic", place / "advantages")
    _judge(row, "critic", valued or command(*critic), place)
    policy = ("update-policy", "--policy", model, *update, place / "advantages")
    _judge(row, "update-policy", command(*policy, "--checkpoint", place / "policy"), place)
    _judge(row, "LoRA", command(*policy, "--lora-rank", 4, "--checkpoint", place / "lora"), place)
    return row


def _grade(sampled: Path, graded: Path) -> None:
    """Every second response is right, as a verifier would have it."""
    rows = read_rows(sampled)
    for number, row in enumerate(rows):
        row |= {schema.OUTCOME_REWARD: float(number % 2), schema.VERDICT: "correct" if number % 2 else "wrong"}
    write_shards(graded, rows)


def _look(row: Row, directory: Path) -> None:
    """How the model is decoded, and whether it can be packed."""
    from primecli.generation.engines.probe import plan_decoding
    from primecli.models.device import resolve_placement
    from primecli.models.loading import load_model
    from primecli.models.packed_attention import obstacle

    placement = resolve_placement("cpu", "float32")
    model = load_model(directory, placement)
    slower = plan_decoding(model, placement).slower()  # before the model keeps the attention of packed rows
    row.cells["generate"] = SLOWER if slower else YES
    row.reasons |= {"generate": slower} if slower else {}
    found = obstacle(model)
    row.cells["packing"] = PADDED if found else YES
    row.reasons |= {"packing": found} if found else {}


def _compare(row: Row, directory: Path, scored: list[dict[str, Any]]) -> None:
    """The gap to the model's own logits; and the same model as PRM and as reference must give no reward at all."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    if any(any(one[schema.PROCESS_REWARDS]) for one in scored):
        row.cells["score-prm"] = NO
        row.reasons["score-prm"] = "rewards of a PRM that is its own reference are not 0"
    model = AutoModelForCausalLM.from_pretrained(directory)
    gaps = []
    for one in scored:
        prompt, response = one[schema.PROMPT_IDS], one[schema.RESPONSE_IDS]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        plain = logits.float().log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0].numpy()
        gaps += [np.abs(np.array(one[name]) - plain).max() for name in (schema.ROLLOUT_LOGPROBS, schema.PRM_LOGPROBS)]
    row.gap = float(np.max(gaps))


def _judge(row: Row, step: str, wrong: str | None, place: Path) -> None:
    row.cells[step] = NO if wrong else YES
    if wrong:
        row.reasons[step] = _short(wrong, place)


def _ended(row: Row, step: str, wrong: str, place: Path) -> Row:
    _judge(row, step, wrong, place)
    return row


def _short(wrong: str, place: Path) -> str:
    """A message without the command and the paths that a reader of the page does not have."""
    text = wrong.partition(": ")[2] if wrong.startswith("primecli ") else wrong
    return text.replace(f"{place}/model: ", "").replace(f"{place}/", "")


def table(rows: list[Row]) -> str:
    """What `make models` writes: the table, and below it what does not work and why."""
    named = sorted({(step, reason) for row in rows for step, reason in row.reasons.items()})
    lines = [
        f"{BEGIN}transformers {_version('transformers')}, torch {_version('torch').partition('+')[0]}. -->",
        "",
        f"| {HEADING} | `model_type` | layers | gap, nats | " + " | ".join(f"{step}" for step in STEPS) + " |",
        "|---|---|---|---|" + "---|" * len(STEPS),
        *(row.line() for row in rows),
        "",
        "| step | architectures | why |",
        "|---|---|---|",
    ]
    for step, reason in named:
        concerned = [row.architecture.name for row in rows if row.reasons.get(step) == reason]
        lines.append(f"| {step} | {', '.join(concerned)} | {reason} |")
    return "\n".join([*lines, "", END])


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def cells_on_page(page: str) -> dict[str, list[str]]:
    """The cells of each architecture's row on the page, without the gap, by its name."""
    found = {}
    for line in page.partition(BEGIN)[2].splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if len(parts) == 4 + len(STEPS) and parts[1].startswith("`") and parts[0] != HEADING:
            found[parts[0]] = [*parts[1:3], *parts[4:]]
    return found


@contextlib.contextmanager
def no_pipe() -> Iterator[None]:
    """Nothing comes from stdin, and the libraries are silent."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    terminal = pipe.stdin_is_terminal
    pipe.stdin_is_terminal = lambda: True
    try:
        yield
    finally:
        pipe.stdin_is_terminal = terminal


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = [BY_NAME[name] for name in sys.argv[1:]] or ARCHITECTURES
    rows = []
    with no_pipe():
        for architecture in chosen:
            with tempfile.TemporaryDirectory() as place:
                rows.append(cover(architecture, Path(place)))
            print(rows[-1].line(), *rows[-1].reasons.items(), file=sys.stderr)
    if len(chosen) < len(ARCHITECTURES):
        print(table(rows))
        return
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.partition(BEGIN)[0] + table(rows) + page.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
