"""What is between `generate` and an engine, with the fake engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from primecli.generation.engines import EngineOptions, Policy, Sample, SamplingParams
from primecli.generation.engines.fake import FakeEngine
from primecli.generation.prompts import Prompt
from primecli.generation.sampler import PromptGroup, Sampler

POLICY = Policy(Path("nowhere"), "f", (256,), 258, 100)
PARAMS = SamplingParams(n=2, max_tokens=6)


def shards(count: int, size: int) -> dict[int, list[PromptGroup]]:
    return {
        shard: [
            PromptGroup(index, Prompt(f"p{index}", "x", None, None, None), "x", [1])
            for index in range(shard * size, (shard + 1) * size)
        ]
        for shard in range(count)
    }


def sampler(engine: FakeEngine, wanted: dict[int, list[PromptGroup]], done: list[int]) -> Sampler:
    return Sampler("hf", POLICY, EngineOptions(), PARAMS, wanted, done=done.append, open_engine=lambda *_: engine)


@pytest.mark.parametrize("backwards", [False, True])
def test_shards_come_in_order_whatever_the_engine_finishes_first(backwards: bool) -> None:
    engine = FakeEngine(backwards=backwards)
    done: list[int] = []
    with sampler(engine, shards(3, 2), done) as running:
        found = [running.samples(number) for number in range(3)]
        assert engine.closed  # before the last shard is passed on: the next stage may want the GPU then
    assert [ids(shard) for shard in found] == [alone(number) for number in range(3)]
    assert sum(done) == 12
    assert engine.confirmed == 3
    assert not engine.aborted


def alone(number: int) -> list[list[list[int]]]:
    engine = FakeEngine()
    with sampler(engine, {number: shards(3, 2)[number]}, []) as running:
        return ids(running.samples(number))


def ids(groups: list[list[Sample]]) -> list[list[list[int]]]:
    return [[one.token_ids.tolist() for one in group] for group in groups]


def test_what_is_in_flight_is_aborted_when_no_more_is_wanted() -> None:
    engine = FakeEngine()
    with sampler(engine, shards(3, 2), []) as running:
        running.samples(0)
        assert engine.finished < 6
    assert engine.aborted
    assert engine.closed


def test_no_engine_is_opened_where_nothing_is_missing() -> None:
    engine = FakeEngine()
    with sampler(engine, {}, []):
        pass
    assert not engine.closed


def test_samples_are_not_given_where_the_weights_have_changed() -> None:
    class Changed(FakeEngine):
        def confirm(self) -> None:
            raise RuntimeError("other weights")

    engine = Changed()
    with sampler(engine, shards(1, 2), []) as running, pytest.raises(RuntimeError, match="other weights"):
        running.samples(0)
    assert engine.closed
