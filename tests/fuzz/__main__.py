"""`python -m tests.fuzz --seed 7`: one case of every command with every kind of file that it reads."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time

from tests.fuzz import children, material
from tests.fuzz.campaign import Campaign, scratch_directory


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, each with the next seed")
    parser.add_argument("--minutes", type=float, help="begin rounds for this long instead")
    parser.add_argument("--cases", type=int, help="of every round, only this many, drawn from all")
    parser.add_argument("--only", default="", help="only targets whose names contain this, such as 'filter: shard'")
    parser.add_argument("--path", default="", help="only targets that change this file")
    parser.add_argument("--keep", action="store_true", help="keep the directory of the last case, and show its words")
    return parser.parse_args()


def main() -> int:
    """Runs the rounds; returns 1 if anything is wrong."""
    asked = arguments()
    scratch = scratch_directory()
    started = time.monotonic()
    try:
        children.prepare()
        base = material.make(scratch / "material")
        material.make_iteration(base)
        print(f"prepared in {time.monotonic() - started:.0f} s", flush=True)
        campaign = Campaign(base, scratch)
        chosen = [
            target for target in campaign.targets if asked.only in target.name and asked.path in ("", target.path)
        ]
        seed = asked.seed
        begun = time.monotonic()
        while seed < asked.seed + asked.rounds or (asked.minutes and time.monotonic() - begun < 60 * asked.minutes):
            drawn = chosen if asked.cases is None else random.Random(seed).sample(chosen, min(asked.cases, len(chosen)))
            for target in drawn:
                if asked.keep:
                    words, ended, wrong = campaign.case(target, seed, keep=True)
                    print(target.name, words, *wrong, ended, " ".join(target.arguments), sep="\n")
                else:
                    campaign.run(target, seed)
            seed += 1
        print(campaign.tally.table())
        print(
            f"{sum(campaign.tally.cases.values())} cases, {len(campaign.tally.failures)} failures, "
            f"{time.monotonic() - started:.0f} s"
        )
        return 1 if campaign.tally.failures else 0
    finally:
        if asked.keep:
            print(f"the last case is in {scratch}/case")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
