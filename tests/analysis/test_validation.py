from __future__ import annotations

from pathlib import Path

from primecli.analysis.validation import Validator
from primecli.shards import schema
from tests.builders import rollouts, write_shards


def test_rows_are_counted_over_batches(tmp_path: Path) -> None:
    """The same problems at the same rows, however few rows are read at once."""
    rows = rollouts(4, 4)
    rows[6][schema.ROLLOUT_LOGPROBS] = [float("nan")] * len(rows[6][schema.RESPONSE_IDS])
    rows[9][schema.RESPONSE_IDS][-1] = -1
    rows[13][schema.OUTCOME_REWARD] = 2.0
    del rows[14]
    directory = write_shards(tmp_path / "a", rows)
    (path,) = directory.glob("*.parquet")
    for batch_rows in (100, 3):
        problems = [problem for problem in Validator(batch_rows).check(path) if problem.row is not None]
        assert sorted((problem.row, problem.column) for problem in problems) == [
            (6, schema.ROLLOUT_LOGPROBS),
            (9, schema.RESPONSE_IDS),
            (12, schema.SAMPLE_INDEX),
            (13, schema.OUTCOME_REWARD),
        ]
