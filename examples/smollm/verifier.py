"""The verifier of a reasoning-gym task, for `primecli verify --verifier TASK=verifier:grade`."""

import json

# imported here and not in the function, so that it does not count for the first answer's time limit
from reasoning_gym import get_score_answer_fn


def grade(response: str, ground_truth: str) -> float:
    """1 if the task's own verifier gives the response full marks, else 0. ground_truth: the entry, as JSON."""
    entry = json.loads(ground_truth)
    score = get_score_answer_fn(entry["metadata"]["source_dataset"])(response.strip(), entry)
    return float(score == 1.0)
