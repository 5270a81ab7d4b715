"""Where do process rewards pay? Runs of the Makefile's loop in which only the rewards and the learning rate differ.

On chains of 16 steps whose slips depend on the fact (make_task.py --slips fact), few samples are taken for each update.
An arm is a kind of reward: outcomes alone, an oracle that knows the wrong steps, and variants of the implicit PRM.

1. Screening, with one seed: every arm at every learning rate. A run that is far behind the best of its arm after a few
   iterations is stopped.
   One that collapses, so that no group of its rollouts has both right and wrong responses, ends there.
2. Finals, with seeds that the screening has not seen: every arm that was not hopeless, at its best learning rate.

The rows of all runs are in a CSV file. A rerun goes on with what is missing there, on any machine, so the study can be
spread over several runs: with --minutes, none starts after that time. study_report.py makes tables and a picture from
the file.

Example:
    make -C examples/arithmetic study MINUTES=110
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import credit
from accuracy import metric, rows_of

EXAMPLE = Path(__file__).parent
TASK = {"TASK_OPTIONS": "--steps 16 --slips fact", "MAX_TOKENS": "128"}
SHARED = {"PROMPTS": "32", "N": "4", "MINI_BATCH": "64", "EVAL_EVERY": "3", "EVAL_N": "1", "KEEP": "all"}

HALF = {"PROCESS_SHARE": "0.5"}
TRUSTED = {**HALF, "PROCESS_TRUST": "1"}
LONGER = {**TRUSTED, "PRM_OPTIONS": "--epochs 4"}
HISTORY = {**TRUSTED, "PRM_REPLAY": "15", "PRM_LR": "1e-3", "PRM_OPTIONS": "--epochs 2"}
OWN = {**HISTORY, "PROCESS_GAMMA": "0"}
BEFORE = {**HALF, "PRM_REPLAY": "15", "PRM_LR": "1e-3", "PRM_OPTIONS": "--epochs 2", "SCORE": "before"}
MIN = "--process-form min --process-temperature 0.02"
FROM_TRAINED = {**HALF, "SCORE": "before", "PRM_START": "trained", "PRM_LR": "1e-3", "BETA": "0.3"}
SMALL = {**TRUSTED, "PRM_START": "trained", "PRM_PROMPTS": "256", "PRM_START_OPTIONS": "--epochs 4"}
CLIP = {"PROCESS_OPTIONS": "--process-clip 0.6"}
TIGHT = {"PROCESS_OPTIONS": "--process-clip 0.3"}
CUT = {"FILTER_OPTIONS": "--allow-truncated"}
TRAINED_CUT = {**TRUSTED, "PRM_START": "trained", "BETA": "0.3", **CUT}
LONG = {**TRAINED_CUT, "PRM_START_OPTIONS": "--epochs 4"}
STEPS = "--process-clip 0.6 --granularity step --process-lambda 0"
WORST = {"PROCESS_OPTIONS": f"{STEPS} --process-form min --process-temperature 0.1"}
WORST_TOKEN = "--process-clip 0.6 --process-form min --process-temperature 0.05"
DPO = {"PRM_OPTIONS": "--loss dpo", "PRM_START_OPTIONS": "--epochs 4 --loss dpo"}
PREFIX_LOSS = "--loss prefix --balance boundary,weight"
PREFIX = {"BETA": "10", "PRM_LR": "1e-3", "PRM_OPTIONS": PREFIX_LOSS, "PRM_START_OPTIONS": f"--epochs 4 {PREFIX_LOSS}"}
FIRST_ARMS: dict[str, dict[str, str]] = {
    "outcome": {"OUTCOME_ONLY": "1"},
    "oracle": {**HALF, "REWARDS": "oracle", "PROCESS_GAMMA": "0"},
    "paper": {},
    "paper-before": {"SCORE": "before"},
    "paper-trained": {"PRM_START": "trained"},
    "paper-frozen": {"PRM": "frozen"},
    "ce": TRUSTED,
    "ce-untrusted": HALF,
    "ce-4": LONGER,
    "ce-4-fast": {**LONGER, "PRM_LR": "1e-3"},
    "ce-4-all": {**LONGER, "PRM_ON": "all"},
    "ce-4-all-fast": {**LONGER, "PRM_ON": "all", "PRM_LR": "1e-3"},
    "ce-replay": {**TRUSTED, "PRM_REPLAY": "4"},
    "ce-4-replay": {**LONGER, "PRM_REPLAY": "4"},
    "ce-4-own": {**LONGER, "PROCESS_GAMMA": "0"},
    "ce-history": HISTORY,
    "ce-history-own": OWN,
    "sharp": {**HISTORY, "BETA": "0.3"},
    "sharp-before-own": {**BEFORE, "PROCESS_GAMMA": "0", "BETA": "0.3"},
    "trained-trusted": {**TRUSTED, "PRM_START": "trained", "BETA": "0.3"},
    "trained-trusted-own": {**TRUSTED, "PRM_START": "trained", "BETA": "0.3", "PROCESS_GAMMA": "0"},
    "outcome-cut": {"OUTCOME_ONLY": "1", **CUT},
    "oracle-cut": {**HALF, "REWARDS": "oracle", "PROCESS_GAMMA": "0", **CUT},
    "trained-trusted-cut": TRAINED_CUT,
    "trained-trusted-own-cut": {**TRAINED_CUT, "PROCESS_GAMMA": "0"},
    "trained-clip-cut": {**TRAINED_CUT, **CLIP},
    "trained-tight-cut": {**TRAINED_CUT, **TIGHT},
    "trained-small-tight-cut": {**SMALL, "BETA": "0.3", **CUT, **TIGHT},
    "sharp-clip-cut": {**HISTORY, "BETA": "0.3", **CUT, **CLIP},
    "trained-own-clip-cut": {**TRAINED_CUT, "PROCESS_GAMMA": "0", **CLIP},
    "trained-fifth-own": {**FROM_TRAINED, "PRM_LR": "3e-4", "PROCESS_GAMMA": "0", "PROCESS_SHARE": "0.2"},
    "trained-own": {**FROM_TRAINED, "PROCESS_GAMMA": "0"},
    "trained-min": {**FROM_TRAINED, "PROCESS_GAMMA": "0", "PROCESS_OPTIONS": MIN},
}
LATER_ARMS: dict[str, dict[str, str]] = {
    "long-cut": {**LONG, **CLIP},
    "long-steps-cut": {**LONG, "PROCESS_OPTIONS": STEPS},
    "long-steps-dpo-cut": {**LONG, "PROCESS_OPTIONS": STEPS, **DPO},
    "long-steps-prefix-cut": {**LONG, "PROCESS_OPTIONS": STEPS.replace("0.6", "20"), **PREFIX},
    "long-steps-frozen-cut": {**LONG, "PROCESS_OPTIONS": STEPS, "PRM": "frozen"},
    "long-worst-token-cut": {**LONG, "PROCESS_OPTIONS": WORST_TOKEN, "PROCESS_GAMMA": "0"},
    "long-worst-cut": {**LONG, **WORST},
    "long-worst-untrusted-cut": {**LONG, **WORST, "PROCESS_TRUST": ""},
    "long-worst-all-cut": {**LONG, **WORST, "PRM_ON": "all"},
    "small-worst-cut": {**SMALL, "BETA": "0.3", **CUT, **WORST},
    "once-worst-cut": {**TRAINED_CUT, **WORST},
    "online-worst-cut": {**HISTORY, "BETA": "0.3", **CUT, **WORST},
}
UNFILTERED = {"FILTER_OPTIONS": "--allow-truncated --accuracy 0 1"}
UNFILTERED_ARMS: dict[str, dict[str, str]] = {
    "outcome-any": {**FIRST_ARMS["outcome-cut"], **UNFILTERED},
    "oracle-any": {**FIRST_ARMS["oracle-cut"], **UNFILTERED},
    "long-steps-any": {**LATER_ARMS["long-steps-cut"], **UNFILTERED},
    "long-steps-frozen-any": {**LATER_ARMS["long-steps-frozen-cut"], **UNFILTERED},
}
ARMS = FIRST_ARMS | LATER_ARMS | UNFILTERED_ARMS
"""What each kind of reward sets in the Makefile.

-4: four epochs of the PRM on each batch. all: it also learns from the groups that the filter drops. fast: at a higher
learning rate. replay: also from the last four batches again. history: from all earlier batches again, twice each, at
the higher rate. sharp: history with a larger beta. before: the PRM rewards a batch before it learns from it. trained:
it starts from one trained before, on 4,096 rollouts of the SFT model; small: on 1,024, four times each. frozen: it is
trained once. own: the credit of a token is its own reward, not the sum of all that follow. cut: groups with a truncated
response are kept. clip, tight: a token's reward is limited to what two nats give, or one.

The later ones limit a token's reward to two nats. long, small, once: a PRM trained before, for four epochs on 4,096
rollouts, four on 1,024, one on 4,096; online: on none. steps: every token has its step's reward. worst: nearly only
that of the worst step; worst-token: of the worst token. dpo, prefix: the PRM's loss.

any: no group is dropped, so most labels are wrong at first; and where all of a group's responses are, only process
rewards tell them apart.
"""

FIGURES = (
    "rollouts",
    "heldout_accuracy",
    "training_accuracy",
    "groups_kept",
    "prm_pair_accuracy_before",
    "process_trust",
    "process_variance_share",
    "entropy",
    "seconds",
)
CREDIT = ("wrong_responses", "share", "chance", "correlation", "after", "format", "format_tokens")
COLUMNS = ("arm", "lr", "seed", "iteration", *FIGURES, *CREDIT)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    arms: the kinds of rewards, the first of which is what others are compared with. lrs: the policy's learning rates.
    screening, finals: seeds. iterations: of a whole run. rung: after how many the worst are stopped.
    kept: the arms that have finals in any case.
    """

    arms: Sequence[str]
    lrs: Sequence[str]
    screening: Sequence[int]
    finals: Sequence[int]
    iterations: int
    rung: int
    stop_below: float = 0.15
    hopeless_below: float = 0.035
    kept: Sequence[str] = ()


PAPER = ("paper", "paper-before", "paper-trained", "paper-frozen")
FULL = Plan(tuple(FIRST_ARMS), ("3e-4", "6e-4"), (0,), (1, 2, 3, 4, 5), iterations=15, rung=6, kept=PAPER)
"""At 1.2e-3, which was tried for the first nine arms, the accuracy of each fell again: the file has the rows."""
QUICK = Plan(("outcome", "oracle", "ce-4"), ("6e-4",), (0,), (), iterations=6, rung=3)
WORST_STEP = Plan(
    ("outcome-cut", "oracle-cut", *LATER_ARMS),
    ("3e-4", "6e-4"),
    (6, 7),
    (1, 2, 3, 4, 5),
    iterations=15,
    rung=6,
    stop_below=0.1,
)
UNFILTERED_PLAN = replace(WORST_STEP, arms=tuple(UNFILTERED_ARMS), kept=tuple(UNFILTERED_ARMS))
PLANS = {"full": FULL, "worst-step": WORST_STEP, "unfiltered": UNFILTERED_PLAN, "quick": QUICK}
"""What each is for.

full: which rewards pay at all. worst-step: PRMs that know more, and the worst step. unfiltered: a PRM that learns on,
and one that is frozen, where no group is dropped. quick: to see that it works.
"""


class Run(NamedTuple):
    """A run."""

    arm: str
    lr: str
    seed: int


class Wanted(NamedTuple):
    """A run that has to be taken further, up to an iteration."""

    run: Run
    until: int


Curve = dict[int, float]


def curves_of(rows: Iterable[Mapping[str, str]]) -> dict[Run, Curve]:
    """Held-out accuracy by iteration, of every run in the CSV file."""
    curves: dict[Run, Curve] = {}
    for row in rows:
        if row["heldout_accuracy"]:
            run = Run(row["arm"], row["lr"], int(row["seed"]))
            curves.setdefault(run, {})[int(row["iteration"])] = float(row["heldout_accuracy"])
    return curves


def area(curve: Curve) -> float:
    """The mean held-out accuracy over the evaluations after the first, which is that of the SFT model.

    >>> area({0: 0.3, 3: 0.5, 6: 0.7})
    0.6
    """
    return fmean(accuracy for iteration, accuracy in curve.items() if iteration)


def wanted(plan: Plan, curves: dict[Run, Curve]) -> Iterator[Wanted]:
    """The runs that are to be taken further, given what has been measured. Decisions wait for what they depend on."""

    def behind(runs: Sequence[Run], until: int) -> list[Wanted]:
        return [Wanted(run, until) for run in runs if max(curves.get(run, {0: 0.0})) < until]

    whole: dict[str, list[Run]] = {}
    for arm in plan.arms:
        screened = [Run(arm, lr, seed) for seed in plan.screening for lr in plan.lrs]
        missing = behind(screened, plan.rung)
        yield from missing
        if not missing:
            whole[arm] = survivors(plan, screened, curves)
            yield from behind(whole[arm], plan.iterations)
    if any(arm not in whole or behind(whole[arm], plan.iterations) for arm in plan.arms):
        return
    for arm, lr in finalists(plan, whole, curves).items():
        yield from behind([Run(arm, lr, seed) for seed in plan.finals], plan.iterations)


def survivors(plan: Plan, screened: Sequence[Run], curves: dict[Run, Curve]) -> list[Run]:
    """Those of an arm's runs with a seed that are not far behind the best of them at the rung."""
    best = {run.seed: 0.0 for run in screened}
    for run in screened:
        best[run.seed] = max(best[run.seed], curves[run][plan.rung])
    return [run for run in screened if curves[run][plan.rung] >= best[run.seed] - plan.stop_below]


def finalists(plan: Plan, whole: dict[str, list[Run]], curves: dict[Run, Curve]) -> dict[str, str]:
    """The best learning rate of every arm that is not hopeless: far below the first arm at its own best.

    Of the learning rates that survived with every seed of the screening, the best has the largest area. The first arm
    comes first, then the others from the best down, so that a study that runs out of time has those.
    """
    best: dict[str, tuple[float, str]] = {}
    for arm, runs in whole.items():
        areas = {lr: [area(curves[run]) for run in runs if run.lr == lr] for lr in plan.lrs}
        best[arm] = max((fmean(of), lr) for lr, of in areas.items() if len(of) == len(plan.screening))
    first = plan.arms[0]
    bar = best[first][0] - plan.hopeless_below
    ranking = sorted(best, key=lambda arm: (arm != first, -best[arm][0]))
    return {arm: best[arm][1] for arm in ranking if best[arm][0] >= bar or arm in plan.kept}


class Study:
    """The study in a CSV file and a work directory."""

    def __init__(self, plan: Plan, csv_file: Path, work: Path) -> None:
        self.plan, self.csv_file, self.work = plan, csv_file, work
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, str]]:
        """All rows of the CSV file."""
        try:
            with open(self.csv_file, newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    def missing(self) -> list[Wanted]:
        """What is still to be run, as far as that is decided."""
        return list(wanted(self.plan, curves_of(self.rows())))

    def directory(self, run: Run) -> Path:
        """Where the Makefile puts the runs of this arm and learning rate."""
        return self.work / "study" / f"{run.arm}-{run.lr}"

    def take(self, item: Wanted) -> None:
        """Takes a run up to its iteration, and its rows into the CSV file. Raises CalledProcessError if make fails.

        A run that has collapsed is evaluated where it stands, and stays there.
        """
        run, until = item
        variables = {
            **SHARED,
            **ARMS[run.arm],
            "RUNS": str(self.directory(run)),
            "LR": run.lr,
            "SEED": str(run.seed),
            "ITERATIONS": str(until),
        }
        log, last = self.directory(run) / f"seed{run.seed}.log", until
        try:
            self._make("run", variables, log)
        except subprocess.CalledProcessError:
            collapsed = [found for place in self._places(run) if (found := collapsed_after(place)) is not None]
            if not collapsed:
                raise
            (last,) = collapsed
            self._make("run", variables | {"ITERATIONS": str(last)}, log)
        (place,) = self._places(run)
        self._add(run, list(measured(place, last, until)))
        if until == self.plan.iterations:
            shutil.rmtree(place)

    def _places(self, run: Run) -> list[Path]:
        return list(self.directory(run).glob(f"*-seed{run.seed}"))

    def prepare(self) -> None:
        """Makes the task, and the models that runs start from."""
        self._make(f"{self.work}/.done/sft", {}, self.work / "study" / "sft.log")
        for arm in self.plan.arms:
            if ARMS[arm].get("PRM_START") == "trained":
                self._make("trained-prm", ARMS[arm], self.work / "study" / "prm.log")

    def _make(self, target: str, variables: dict[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        every = {**TASK, "WORK": str(self.work), **variables}
        with open(log, "ab") as output:
            command = ["make", "-C", str(EXAMPLE), target, *(f"{name}={value}" for name, value in every.items())]
            subprocess.run(command, stdout=output, stderr=output, check=True)

    def _add(self, run: Run, rows: list[dict[str, object]]) -> None:
        """Replaces the rows of a run in the CSV file, in the order of arms, learning rates, seeds and iterations."""
        with self._lock:
            mine = {"arm": run.arm, "lr": run.lr, "seed": str(run.seed)}
            every = [row for row in self.rows() if {name: row[name] for name in mine} != mine]
            every += [{name: text(value) for name, value in (row | mine).items()} for row in rows]
            order = list(ARMS)
            every.sort(
                key=lambda row: (order.index(row["arm"]), float(row["lr"]), int(row["seed"]), int(row["iteration"]))
            )
            self.csv_file.parent.mkdir(parents=True, exist_ok=True)
            beside = self.csv_file.with_suffix(".part")
            with open(beside, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(every)
            os.replace(beside, self.csv_file)


def collapsed_after(place: Path) -> int | None:
    """The last iteration of a run of whose next rollouts the filter keeps no group; None if there is none such."""
    for directory in place.glob("[0-9]*/filter"):
        iteration = int(directory.parent.name)
        if metric(directory, "kept") == 0 and not (place / "policy" / str(iteration)).exists():
            return iteration - 1
    return None


def measured(place: Path, last: int, until: int) -> Iterator[dict[str, object]]:
    """The rows of a run, with how its process rewards compare with the truth.

    last: the run's last iteration. until: the one that was wanted. From the last to that one, held-out accuracy is that
    of the last, and no group is kept.
    """
    evaluated = {*range(0, until, int(SHARED["EVAL_EVERY"])), until}
    stage = "oracle" if (place / "1" / "oracle").is_dir() else "score-prm"
    truth = {row["iteration"]: row for row in credit.rows_of(place, stage)}
    accuracy: float | None = None
    for row in rows_of(place):
        iteration = int(row["iteration"] or 0)
        if iteration > last:
            break
        accuracy = row["heldout_accuracy"]
        trust = metric(place / str(iteration) / "compute-advantages", "process_trust")
        figures = {**row, "process_trust": trust}
        if iteration == last and last not in evaluated:  # the others are not measured there
            figures["heldout_accuracy"] = None
        judged = truth.get(iteration, {}) if iteration else {}
        yield {
            "iteration": iteration,
            **{name: figures[name] for name in FIGURES},
            **{name: judged.get(name) for name in CREDIT},
        }
    for iteration in range(last + 1, until + 1):
        yield {
            **dict.fromkeys((*FIGURES, *CREDIT)),
            "iteration": iteration,
            "rollouts": int(SHARED["PROMPTS"]) * int(SHARED["N"]) * iteration,
            "heldout_accuracy": accuracy if iteration in evaluated else None,
            "groups_kept": 0,
        }


def text(value: object) -> str:
    """A value as it stands in the CSV file.

    >>> text(0.123456789), text(None), text(3)
    ('0.123457', '', '3')
    """
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def drive(study: Study, jobs: int, minutes: float | None) -> bool:
    """Runs what is missing, `jobs` at a time, and returns whether nothing is. minutes: after which no run starts."""
    started = time.monotonic()
    running: dict[Future[None], Wanted] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            in_time = minutes is None or time.monotonic() - started < 60 * minutes
            todo = [item for item in study.missing() if item not in running.values()] if in_time else []
            for item in todo[: jobs - len(running)]:
                print(f"study: {' '.join(map(str, item.run))} to iteration {item.until}", file=sys.stderr)
                running[pool.submit(study.take, item)] = item
            if not running:
                return not study.missing()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="the rows of all runs")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="the Makefile's WORK")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (default: 2)")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no run after this time (default: no limit)")
    parser.add_argument("--plan", choices=PLANS, default="full", help="what to run (default: full)")
    arguments = parser.parse_args()
    study = Study(PLANS[arguments.plan], arguments.csv, arguments.work.resolve())
    try:
        study.prepare()
        done = drive(study, max(arguments.jobs, 1), arguments.minutes)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"study.py: a run failed; the end of its log, *.log in {arguments.work}/study, says why: {error}"
        ) from None
    print(f"study: {'complete' if done else 'not complete: run it again to go on'}: {arguments.csv}", file=sys.stderr)


if __name__ == "__main__":
    main()
