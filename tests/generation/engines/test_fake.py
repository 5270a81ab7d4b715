from __future__ import annotations

import pytest

from primecli.generation.engines import Request, SamplingParams
from primecli.generation.engines.fake import FakeEngine

REQUESTS = [Request("a", [1]), Request("b", [2]), Request("c", [3])]


def test_the_same_seed_gives_the_same_samples_in_any_order() -> None:
    params = SamplingParams(n=3, max_tokens=8)
    forth, back = (
        dict(FakeEngine(backwards=backwards).sample(REQUESTS, params, tick=lambda: None)) for backwards in (False, True)
    )
    assert list(forth) == [0, 1, 2]
    assert list(back) == [2, 1, 0]
    for number, group in forth.items():
        assert [one.token_ids.tolist() for one in group] == [one.token_ids.tolist() for one in back[number]]
        assert all(len(one.logprobs) == len(one.token_ids) for one in group)


def test_it_says_that_it_was_aborted() -> None:
    engine = FakeEngine()
    groups = engine.sample(REQUESTS, SamplingParams(), tick=lambda: None)
    next(groups)
    groups.close()
    assert engine.aborted

    def tick() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(engine.sample(REQUESTS, SamplingParams(), tick=tick))
    assert engine.aborted
    list(engine.sample(REQUESTS, SamplingParams(), tick=lambda: None))
    assert not engine.aborted
