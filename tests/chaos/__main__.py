"""`make chaos`: kills, faults and signals at every file operation of every stage, and broken input for every command.

python -m tests.chaos                                   every kill; then faults, signals and broken input
python -m tests.chaos --minutes 10 --seed 3             a sample of all, drawn by the seed
python -m tests.chaos --stage filter --strike kill      one kind of strike on one stage
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Sequence

from tests.chaos.campaign import AT_RANDOM, Campaign, Strike
from tests.chaos.interposer import STRIKES
from tests.fuzz import campaign as fuzz
from tests.fuzz import children, material
from tests.fuzz.material import STAGES

FUZZ_SHARE = 0.35  # of the time, where it is limited


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, help="stop after about this long; without it, everything is tried once"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order, the broken input and the random moments")
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="only this stage; may be repeated")
    parser.add_argument("--strike", action="append", choices=[*STRIKES, AT_RANDOM], help="only this; may be repeated")
    parser.add_argument("--at", type=int, help="only this operation, or this seed of a random moment")
    parser.add_argument("--count", type=int, help="only this many strikes, drawn by the seed")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of broken input, without --minutes; 0 for none")
    return parser.parse_args()


def main() -> int:
    """Runs the campaign; returns 1 if anything was not as promised."""
    asked = arguments()
    scratch = fuzz.scratch_directory()
    started = time.monotonic()
    try:
        children.prepare()
        base = material.make(scratch / "material")
        material.make_iteration(base)
        print(f"prepared in {time.monotonic() - started:.0f} s", flush=True)
        deadline = time.monotonic() + 60 * asked.minutes if asked.minutes else None
        fuzzing = None if asked.rounds == 0 or asked.at is not None else _broken_input(asked, base, scratch)
        campaign = Campaign(base, scratch, asked.stage or tuple(STAGES))
        for strike in chosen(campaign, asked):
            if deadline is not None and time.monotonic() > deadline:
                break
            campaign.run(strike)
        return report(campaign, fuzzing, time.monotonic() - started)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _broken_input(asked: argparse.Namespace, base: object, scratch: object) -> fuzz.Campaign:
    """Rounds of broken input, or as many as fit into a share of the time."""
    fuzzing = fuzz.Campaign(base, scratch)  # type: ignore[arg-type]
    end = time.monotonic() + 60 * FUZZ_SHARE * asked.minutes if asked.minutes else None
    seed = asked.seed
    while (seed < asked.seed + asked.rounds) if end is None else (time.monotonic() < end):
        targets = list(fuzzing.targets)
        random.Random(seed).shuffle(targets)
        for target in targets:
            if end is not None and time.monotonic() > end:
                break
            fuzzing.run(target, seed)
        seed += 1
    return fuzzing


def chosen(campaign: Campaign, asked: argparse.Namespace) -> list[Strike]:
    """The strikes asked for, in the order in which they are tried."""
    whats: Sequence[str] = asked.strike or [*STRIKES, AT_RANDOM]
    if asked.at is not None:
        strikes = [Strike(stage, what, asked.at) for what in whats for stage in campaign.undisturbed]
        for strike in strikes:
            campaign.outcome.possible[strike.stage, strike.what] += 1
        return strikes
    strikes = campaign.all_strikes([what for what in whats if what != AT_RANDOM])
    if AT_RANDOM in whats:
        strikes += campaign.at_random(12, asked.seed)
    if asked.minutes or asked.count:
        random.Random(asked.seed).shuffle(strikes)
    return strikes[: asked.count]


def report(campaign: Campaign, fuzzing: fuzz.Campaign | None, seconds: float) -> int:
    """Prints what came of it; returns the exit code."""
    failures = list(campaign.outcome.failures)
    if fuzzing is not None:
        failures += fuzzing.tally.failures
        print(fuzzing.tally.table())
        print(f"broken input: {fuzzing.tally.cases.total()} cases, {len(fuzzing.tally.failures)} failures")
    print(campaign.outcome.table())
    print(f"{len(failures)} failures, {seconds:.0f} s")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
