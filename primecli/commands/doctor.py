"""`primecli doctor`."""

from __future__ import annotations

from typing import Annotated

from primecli.options import Option


def doctor(
    iteration: Annotated[
        bool, Option("Also run a whole iteration with a tiny random model.", flags="--iteration/--no-iteration")
    ] = True,
    model: Annotated[
        str | None,
        Option("Also say how much disk the loop of `init` takes with this model.", metavar="DIR|HUB_ID"),
    ] = None,
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
) -> int:
    """The last check runs a whole iteration: real processes, a tiny random model, four prompts, in a temporary
    directory. Nothing is downloaded, and nothing is left behind. `note` is good to know; `failed` keeps stages from
    working, and gives exit code 1.

    Example:

      primecli doctor --model PRIME-RL/Eurus-2-7B-SFT
    """
    from primecli.setup.doctor import examine

    return examine(iteration=iteration, model=model, as_json=as_json)
