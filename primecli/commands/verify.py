"""`primecli verify`."""

from __future__ import annotations

from primecli.stages import verify as stage


def verify(options: stage.VerifyOptions) -> None:
    """math takes the answer from the last \\boxed{}, else from a final-answer phrase, else it is the last number.
    code runs the program of a response against its tests in a sandbox.

    What the model caused is reward 0, with the verdict wrong, unparseable or timeout. Where the verifier itself or the
    data failed (no ground truth, for one), the reward is null and the verdict error: such rows are counted,
    filter drops their groups, and with more of them than --max-errors the stage ends with exit code 4.

    Example:

      primecli verify --timeout 5 runs/1/generate
    """
    stage.verify(options)
