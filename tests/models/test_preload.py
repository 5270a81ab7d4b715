"""Models that are loaded ahead."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from primecli import cli
from primecli.errors import InputError
from primecli.models import loading, preload, saving
from primecli.models.device import Placement, resolve_placement
from primecli.models.head import head_of
from primecli.models.preload import Preloader
from primecli.pipeline import pipe
from primecli.setup.tiny_model import make_model
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows
from tests.models.architectures import save

WAIT_SECONDS = 0.5  # seconds, after which a stage that loads nothing gets its paths
CPU = resolve_placement("cpu", "float32")


class Loader:
    """Loads as `load_model` does, and notes the thread."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __call__(self, directory: Path, placement: Placement, **options: Any) -> Any:
        self.threads.append(threading.current_thread())
        return loading.load_model(directory, placement, **options)


def same(model: Any, directory: Path) -> bool:
    wanted = loading.load_model(directory, CPU).state_dict()
    return all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_there_loads_ahead_and_is_given_out_once(tiny: Path, other: Path) -> None:
    loader = Loader()
    ahead = Preloader(None, loader)
    ahead.begin([(tiny, "float32"), (other, "float32"), ("not/there/yet", "float32")])
    first, second = ahead.load(other, CPU), ahead.load(tiny, CPU)
    assert threading.main_thread() not in loader.threads
    assert len(loader.threads) == 2
    assert same(first, other)
    assert same(second, tiny)
    assert ahead.load(tiny, CPU) is not second
    assert loader.threads[2:] == [threading.main_thread()]


def test_one_directory_in_two_roles_is_two_models(tiny: Path) -> None:
    loader = Loader()
    ahead = Preloader(None, loader)
    ahead.begin([(tiny, "float32"), (tiny, "bfloat16"), (tiny, "float32")])
    found = [ahead.load(tiny, CPU), ahead.load(tiny, CPU), ahead.load(tiny, resolve_placement("cpu", "bfloat16"))]
    assert len(set(map(id, found))) == 3
    assert [model.dtype for model in found] == [torch.float32, torch.float32, torch.bfloat16]
    assert threading.main_thread() not in loader.threads


def test_a_model_to_train_is_another_than_the_same_one_as_a_reference(tmp_path: Path) -> None:
    start = make_model(tmp_path / "start", dtype="bfloat16")
    model = loading.load_model(start, CPU, to_train=True)
    with torch.no_grad():
        model.model.norm.weight.fill_(1 + 2**-12)  # which is 1 in bfloat16
    checkpoint = tmp_path / "1"
    checkpoint.mkdir()
    saving.save(checkpoint, model, {}, source=start, same_base=False, record={"step": 1}, lineage=["0"], steps=[])
    loader = Loader()
    ahead = Preloader(None, loader)
    ahead.begin([(checkpoint, "float32")], to_train=checkpoint)
    reference, trained = ahead.load(checkpoint, CPU), ahead.load(checkpoint, CPU, dtype=torch.float32, to_train=True)
    assert float(reference.model.norm.weight.detach()[0]) == 1.0
    assert float(trained.model.norm.weight.detach()[0]) == 1 + 2**-12
    assert len(loader.threads) == 2
    assert threading.main_thread() not in loader.threads


def test_a_model_that_has_changed_meanwhile_is_loaded_again(tiny: Path, other: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    loader = Loader()
    ahead = Preloader(None, loader)
    ahead.begin([(directory, "float32")])
    assert ahead.wait()
    shutil.rmtree(directory)
    shutil.copytree(other, directory)
    assert same(ahead.load(directory, CPU), other)
    assert loader.threads[1:] == [threading.main_thread()]


def test_what_is_wrong_with_a_model_is_said_when_it_is_needed(tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    ahead = Preloader(None)
    ahead.begin([(directory, "float32")])
    with pytest.raises(InputError, match="damaged weights"):
        ahead.load(directory, CPU)


def test_a_defect_in_the_thread_is_not_swallowed(tiny: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    ahead = Preloader(None, broken)
    ahead.begin([(tiny, "float32")])
    with pytest.raises(ZeroDivisionError):
        ahead.load(tiny, CPU)


def test_it_computes_in_one_thread_and_the_stage_in_all_of_its_own(tiny: Path) -> None:
    threads: dict[str, int] = {}

    def load(directory: Path, placement: Placement) -> Any:
        threads["ahead"] = torch.get_num_threads()
        return loading.load_model(directory, placement)

    before = torch.get_num_threads()
    try:
        early = Preloader(3, load)
        early.begin([(tiny, "float32")])
        early.wait()
    finally:
        torch.set_num_threads(before)
    assert threads["ahead"] == 1
    other = threading.Thread(target=lambda: threads.update(another=torch.get_num_threads()))
    other.start()
    other.join()
    assert threads["another"] == before


def test_nothing_loads_ahead_where_memory_is_short(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(path.stat().st_size for path in tiny.glob("*.safetensors"))
    loader = Loader()
    for available, threads in ((8 * weights, 0), (8 * weights + 4, 1)):
        monkeypatch.setattr(preload, "available_bytes", lambda available=available: available)
        ahead = Preloader(None, loader)
        ahead.begin([(tiny, "float32")])
        assert ahead.wait() == bool(threads)
        ahead.load(tiny, CPU)
    assert [thread is threading.main_thread() for thread in loader.threads] == [True, False]


def test_available_memory_is_some_of_all() -> None:
    assert 0 < preload.available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a stage in this process with paths that arrive late; returns what it began to load meanwhile."""

    def run(paths: Sequence[Path], *arguments: object) -> list[Path]:
        begun = threading.Event()
        wanted: list[Path] = []
        begin = Preloader.begin

        def noted(ahead: Preloader, names: Sequence[tuple[Path | str, str]], to_train: Path | None = None) -> None:
            begin(ahead, names, to_train=to_train)
            wanted.extend([*filter(None, [to_train]), *(Path(name) for name, _ in names)])
            begun.set()

        reading, writing = os.pipe()

        def write() -> None:
            begun.wait(WAIT_SECONDS)
            with open(writing, "w") as stream:
                stream.writelines(f"{path}\n" for path in paths)

        with open(reading) as stdin, monkeypatch.context() as patch:
            patch.setattr(pipe, "IDLE_SECONDS", 0.02)
            patch.setattr(Preloader, "begin", noted)
            patch.setattr("sys.stdin", stdin)
            writer = threading.Thread(target=write)
            writer.start()
            code = cli.run([str(argument) for argument in (*arguments, "--quiet", "-")])
            writer.join()
        assert code == 0, capfd.readouterr().err
        return wanted

    return run


def test_an_update_loads_ahead_what_it_trains_unless_its_checkpoint_is_there(
    piped: Any, tiny: Path, other: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(2, 2))
    shards = sorted(directory.glob("*.parquet"))
    command = ["update-prm", "--prm", tiny, "--ref", other, "--mini-batch", 4, "--lr", 1e-3, "--checkpoint"]
    assert set(piped(shards, *command, tmp_path / "ahead")) == {tiny, other}
    assert piped(shards, *command, tmp_path / "ahead") == []  # the output exists already
    primecli(*command, tmp_path / "plain", directory)
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (tmp_path / "ahead" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_scores_of_models_that_loaded_ahead_are_the_same(
    piped: Any, tiny: Path, other: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(2, 2))
    shards = sorted(directory.glob("*.parquet"))
    score = ["score-prm", "--prm", tiny, "--ref", other, "--out"]
    assert piped(shards, *score, tmp_path / "ahead") == [tiny, other]
    primecli(*score, tmp_path / "plain", directory)
    assert read_rows(tmp_path / "ahead") == read_rows(tmp_path / "plain")
    values = ["score-values", "--critic", tiny, "--out"]
    assert piped(shards, *values, tmp_path / "values") == [tiny]
    primecli(*values, tmp_path / "plain-values", directory)
    assert read_rows(tmp_path / "values") == read_rows(tmp_path / "plain-values")


def test_what_a_head_does_is_known_of_a_preloaded_model(tmp_path: Path) -> None:
    directory = save("Gemma 2", tmp_path / "model")
    early = Preloader(threads=1)
    early.begin([(directory, "float32")])
    assert head_of(early.load(directory, CPU)).after.cap == 5.0
