"""What --log writes equals steps.jsonl; a logger that fails does not fail the update."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.errors import Interrupted, UsageError
from primecli.files import is_locked
from primecli.models.identity import model_fingerprint
from primecli.pipeline import loggers, pipe
from primecli.shards import schema
from primecli.training.trainer import Trainer
from primecli.training.update_run import UpdateRun
from tests.builders import rollouts, write_shards
from tests.log_files import read_parts, scalars

GROUPS, SIZE = 6, 4
STEPS = 3  # optimizer steps of an update, with mini-batches of two groups
PREFIXES = {"update-prm": "prm", "update-critic": "critic", "update-policy": "policy"}
MODELS = {"update-prm": "--prm", "update-critic": "--critic", "update-policy": "--policy"}


@pytest.fixture(autouse=True)
def offline(wandb_offline: None) -> None:
    """Keeps these tests from any wandb account."""


@pytest.fixture
def batch(tmp_path: Path, tiny: Path) -> Path:
    """Shards that every update can train on."""
    rows = rollouts(GROUPS, SIZE, policy_fingerprint=model_fingerprint(tiny))
    generator = np.random.default_rng(0)
    for row in rows:
        for name in (schema.ADVANTAGES, schema.RETURNS, schema.VALUES):
            row[name] = generator.normal(size=len(row[schema.RESPONSE_IDS])).tolist()
    return write_shards(tmp_path / "in", rows)


@pytest.fixture
def update(tmp_path: Path, tiny: Path, batch: Path, primecli: Any) -> Any:
    """Runs an update of an iteration, starting from the one before, in tmp_path/run."""

    def run(stage: str, iteration: int, *options: object, check: bool = True) -> Any:
        directory = tmp_path / "run" / PREFIXES[stage]
        model = tiny if iteration == 1 else directory / str(iteration - 1)
        arguments = [stage, MODELS[stage], model, "--checkpoint", directory / str(iteration), batch, "--lr", "1e-3"]
        arguments += ["--mini-batch", 2 * SIZE, "--quiet"]
        arguments += {"update-prm": ["--ref", tiny], "update-policy": ["--max-staleness", 9]}.get(stage, [])
        return primecli(*arguments, *options, check=check)

    return run


def steps(run: Path, prefix: str, iterations: int) -> list[dict[str, float]]:
    """The steps that the checkpoints record, under the names that they have in the loggers."""
    texts = [(run / prefix / str(number + 1) / "trainer/steps.jsonl").read_text() for number in range(iterations)]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    return [{f"{prefix}/{name}": value for name, value in row.items()} for row in rows]


def columns(rows: list[dict[str, float]], prefix: str) -> dict[str, list[tuple[int, float]]]:
    """The rows as `scalars` returns them, in the precision of event files."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != f"{prefix}/step":
                found.setdefault(name, []).append((int(row[f"{prefix}/step"]), float(np.float32(value))))
    return found


@pytest.mark.parametrize("stage", PREFIXES)
def test_tensorboard_has_every_step_of_all_iterations_once(stage: str, tmp_path: Path, update: Any) -> None:
    for iteration in (1, 2, 2):  # the last one skips
        update(stage, iteration, "--log", "tensorboard")
    prefix = PREFIXES[stage]
    found = scalars(tmp_path / "run/log/tensorboard" / prefix)
    wanted = columns(steps(tmp_path / "run", prefix, 2), prefix)
    assert found == wanted
    assert [step for step, _ in found[f"{prefix}/loss"]] == list(range(1, 2 * STEPS + 1))
    assert len(list((tmp_path / "run/log/tensorboard" / prefix).iterdir())) == 2


def test_steps_of_an_update_that_was_killed_are_replaced(
    tmp_path: Path, update: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ["--log", "tensorboard", "--log", "wandb"]
    update("update-prm", 1, *log)
    take_step, taken = Trainer.take_step, itertools.count()

    def killed(self: Trainer, *arguments: Any, **keywords: Any) -> None:
        if next(taken) == 2:
            raise Interrupted("killed")
        take_step(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", killed)
        assert update("update-prm", 2, *log, "--lr", "3e-3", check=False).code == 130
    directory = tmp_path / "run/log/tensorboard/prm"
    assert [step for step, _ in scalars(directory)["prm/loss"]] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "run/prm/2").exists()
    update("update-prm", 2, *log)
    assert scalars(directory) == columns(steps(tmp_path / "run", "prm", 2), "prm")
    parts = read_parts(tmp_path / "run/log")
    assert [[row["prm/step"] for row in part.rows] for part in parts] == [[1, 2, 3], [4, 5], [4, 5, 6]]
    assert [part.exit_code for part in parts] == [0, 1, 0]


def test_wandb_offline_writes_parts_of_one_run(tmp_path: Path, update: Any, batch: Path) -> None:
    for stage, iteration in [("update-prm", 1), ("update-policy", 1), ("update-prm", 2), ("update-policy", 2)]:
        result = update(stage, iteration, "--log", "wandb")
        assert result.paths == sorted(batch.glob("*.parquet"))  # only paths on stdout, although wandb likes to print
    update("update-policy", 2, "--log", "wandb")  # skips
    parts = read_parts(tmp_path / "run/log")
    assert [(part.project, part.name, part.resumes, part.exit_code) for part in parts] == [
        ("primecli", tmp_path.name, True, 0)
    ] * 4
    assert {part.run_id for part in parts} == {(tmp_path / "run/log/wandb-run-id").read_text().strip()}
    rows = [row for part in parts for row in part.rows]
    assert [row["_step"] for row in rows] == list(
        range(4 * STEPS)
    )  # otherwise wandb drops rows when it syncs the parts into one run
    own = [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]
    prm, policy = (steps(tmp_path / "run", prefix, 2) for prefix in ("prm", "policy"))
    assert own == [*prm[:STEPS], *policy[:STEPS], *prm[STEPS:], *policy[STEPS:]]
    assert parts[0].axes == {f"{prefix}/*": f"{prefix}/step" for prefix in PREFIXES.values()}
    assert parts[0].config["update-prm"]["mini_batch"] == 2 * SIZE


def test_the_next_stage_starts_after_wandb_has_finished(
    tmp_path: Path, update: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wandb run can have only one writer at a time, but the stages of a pipeline run at the same time."""
    locked: list[bool] = []
    lock, emit_all, log_step = tmp_path / "run/log/.wandb-steps.lock", pipe.emit_all, UpdateRun.log_step

    def logged(self: UpdateRun, step: Any) -> None:
        log_step(self, step)
        locked.append(is_locked(lock))

    def emit(paths: Any) -> None:
        locked.append(is_locked(lock))
        assert (tmp_path / "run/prm/1/model.safetensors").exists()
        emit_all(paths)

    monkeypatch.setattr(UpdateRun, "log_step", logged)
    monkeypatch.setattr(pipe, "emit_all", emit)
    update("update-prm", 1, "--log", "wandb")
    assert locked == [True] * STEPS + [False]


def test_the_user_can_name_the_log_directory_and_the_run(
    tmp_path: Path, update: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in [("RUN_ID", "mine"), ("PROJECT", "sums"), ("NAME", "first")]:
        monkeypatch.setenv(f"WANDB_{name}", value)
    update("update-critic", 1, "--log", "wandb", "--log", "tensorboard", "--log-dir", tmp_path / "here")
    (part,) = read_parts(tmp_path / "here")
    assert (part.run_id, part.project, part.name) == ("mine", "sums", "first")
    assert scalars(tmp_path / "here/tensorboard/critic").keys() >= {"critic/loss", "critic/grad_norm"}
    assert not (tmp_path / "run/log").exists()


@pytest.mark.parametrize("name", list(loggers.LoggerName))
@pytest.mark.parametrize("there", ["nothing", "a directory of that name"])
def test_a_logger_that_is_not_installed_is_an_error_before_any_work(
    name: str, there: str, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    found = None if there == "nothing" else importlib.machinery.ModuleSpec(name, None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: found if asked == name else find_spec(asked))
    for arguments in (
        ["update-prm", "--prm", "x", "--ref", "x", "--checkpoint", tmp_path / "run/prm/1", "x"],
        ["watch", tmp_path / "run"],
    ):
        result = primecli(*arguments, "--log", name, check=False)
        assert (result.code, f"(pip install {name})" in result.line()) == (2, True)
    assert not (tmp_path / "run").exists()


def test_wandb_without_an_account_is_an_error_before_any_work(
    tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    update = ["update-prm", "--prm", "x", "--ref", "x", "--checkpoint", tmp_path / "run/prm/1", "x", "--log", "wandb"]
    result = primecli(*update, check=False)
    assert (result.code, "no API key (run `wandb login`" in result.line()) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_log_directory_that_cannot_be_written_costs_no_step(tmp_path: Path, update: Any) -> None:
    (tmp_path / "file").touch()
    result = update(
        "update-prm", 1, "--log", "tensorboard", "--log", "wandb", "--log-dir", tmp_path / "file/log", check=False
    )
    warnings = [line for line in result.err.splitlines() if "warning" in line]
    assert result.code == 0
    assert [line.split()[5] for line in warnings] == ["tensorboard", "wandb"]
    assert len(steps(tmp_path / "run", "prm", 1)) == STEPS


def test_a_full_disk_is_one_warning_and_costs_no_step(tmp_path: Path, update: Any, mounted: Any) -> None:
    place = mounted("size=64k")
    log = ["--log", "tensorboard", "--log-dir", place]
    update("update-prm", 1, *log)
    with open(place / "rest", "wb", buffering=0) as rest:
        with contextlib.suppress(OSError):
            while True:
                rest.write(bytes(4096))
        rest.truncate(rest.tell() - 4096)  # room for the beginning of the next event file
    result = update("update-prm", 2, *log, "--epochs", 20)
    assert result.line().endswith("No space left on device")
    assert "warning: logging to tensorboard failed" in result.line()
    assert len(steps(tmp_path / "run", "prm", 2)) == 21 * STEPS
    kept = scalars(place / "tensorboard/prm")["prm/loss"]
    assert STEPS < len(kept) < 21 * STEPS


def test_an_unreachable_server_costs_no_step(tmp_path: Path, update: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"MODE": "online", "API_KEY": "a" * 40, "BASE_URL": "http://127.0.0.1:9", "INIT_TIMEOUT": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    result = update("update-prm", 1, "--log", "wandb")
    warnings = [line for line in result.err.splitlines() if "warning: logging to wandb failed" in line]
    assert len(warnings) == 1
    assert len(steps(tmp_path / "run", "prm", 1)) == STEPS


def test_a_logger_that_fails_when_it_is_closed_is_dropped_with_a_warning() -> None:
    class Broken:
        name = "broken"

        def write(self, step: int, values: Any) -> None:
            return

        def close(self, *, ok: bool) -> None:
            raise TimeoutError("gave up\nafter a minute")

    said: list[str] = []
    log = loggers.Log([Broken()], said.append)
    log.write(1, {"a": 1.0})
    log.close(ok=True)
    log.close(ok=True)
    assert len(said) == 1
    assert said[0].endswith("gave up after a minute")


def test_the_run_id_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loggers.run_id(tmp_path)
    assert loggers.run_id(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["wandb-run-id"]
    (tmp_path / "other").mkdir()
    assert loggers.run_id(tmp_path / "other") != first
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self.name != "wandb-run-id" and exists(self))
    assert loggers.run_id(tmp_path) == first  # as if another process had just made it


def test_a_broken_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(Exception, match=r"state\.json: is not JSON"):
        loggers.read_state(tmp_path / "state.json", int)
    (tmp_path / "state.json").write_text('{"rows": "many"}')
    with pytest.raises(Exception, match=r"state\.json: rows: expected a whole number, found a text"):
        loggers.read_state(tmp_path / "state.json", int)
    with pytest.raises(UsageError, match="--log nothing: nothing is not installed"):
        loggers.check(["nothing"])


def test_tensorboard_says_where_to_look(tmp_path: Path) -> None:
    notes: list[str] = []
    log = loggers.step_log("update-prm", ["tensorboard"], tmp_path / "my log", {}, warn=pytest.fail, note=notes.append)
    for step in (1, 2):
        log.write(step, {"prm/loss": 0.5})
    log.close(ok=True)
    assert notes == [f"logs to TensorBoard: tensorboard --logdir '{tmp_path}/my log/tensorboard'"]
