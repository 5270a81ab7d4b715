"""`primecli verify`."""

from __future__ import annotations

from primecli.stages import verify as stage


def verify(options: stage.VerifyOptions) -> None:
    """The math verifier takes the answer from the last \\boxed{}, else from a final-answer phrase, else from the last
    number. The code verifier runs the program in a response against its tests, in a sandbox.

    Whatever is the model's fault has reward 0, with the verdict wrong, unparseable or timeout. If the verifier or the
    data is at fault, such as a missing ground truth, the reward is null and the verdict is error. Such rows are
    counted, and filter drops their groups; if there are more of them than --max-errors, verify ends with exit code 4.

    With --overlong, responses near the length limit lose reward, and keep their verdict. In _summary.json, accuracy is
    that before the penalty, and reward_mean is the mean reward after it.

    Example:

      primecli verify --timeout 5 runs/1/generate
    """
    stage.verify(options)
