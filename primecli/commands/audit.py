"""`primecli audit`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from primecli.options import Option, Partial, Seed, Shards


def audit(
    shards: Shards = (),
    fail_on: Annotated[
        tuple[str, ...],
        Option(
            "End with exit code 5 where the metric's value is so, such as 'pair-accuracy<0.6'; may be repeated. Quote "
            "it: < and > are the shell's.",
            metavar="METRIC<VALUE|METRIC>VALUE",
        ),
    ] = (),
    top: Annotated[int, Option("Groups of the strongest disagreement to show.", min=0)] = 5,
    as_json: Annotated[bool, Option("Print JSON, with the bins of the calibration.", flags="--json")] = False,
    seed: Seed = 0,
    partial: Partial = False,
) -> None:
    """A response's score is the sum of its process rewards. The audit holds it against the outcome, within groups
    and over the batch, against length, and against repeating itself; says ok, watch or bad, with the bounds; and
    shows the groups where score and outcome disagree most: those whose best-scored wrong response is furthest
    above their worst-scored right one. Intervals are 95%, by resampling whole groups. Responses without an
    outcome reward are left out and counted.

    Several directories are audited apart and shown beside each other, in the order of their numbers:
    overoptimisation is a trend.

    \b
    Metrics, for --fail-on (a wide terminal says what each is):
      outcome  pair-accuracy group-auc group-correlation correlation spearman auc
               calibration-error brier reward-right reward-wrong
      length   length-correlation group-length-correlation wrong-length-correlation
      repeats  repeats repeats-preferred duplicates distinct truncation
               truncation-preferred

    A condition on a metric that cannot be computed, as where no group has right and wrong responses, does not
    pass: exit code 3.

    Example:

      \b
      primecli audit runs/*/score-prm \\
        --fail-on 'pair-accuracy<0.6' --fail-on 'group-length-correlation>0.5'
    """
    import contextlib

    from primecli.analysis import audit as auditing
    from primecli.analysis.responses import collect
    from primecli.errors import ReaderClosed
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    gates = [_gate(text) for text in fail_on or ()]
    reports: dict[str, dict[str, Any]] = {}
    for label, arguments in _sources(list(shards)).items():
        parts = Inputs(arguments, partial=partial, together=True, warn=lambda text: say("audit", text))
        reports[label] = auditing.report(collect(parts), seed=seed, top=top)
    with contextlib.suppress(ReaderClosed):  # who reads no further asks for the conditions all the same
        _show(reports, as_json)
    _check(gates, reports)


def _show(reports: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    import json

    from primecli.analysis.audit_view import show

    if as_json:
        print(json.dumps([{"input": label, **report} for label, report in reports.items()], indent=2, allow_nan=False))
    else:
        show(dict(zip(_short(list(reports)), reports.values(), strict=True)))


def _sources(arguments: list[str]) -> dict[str, list[str]]:
    """The inputs that are audited apart: each directory where several are named, else all together."""
    from primecli.pipeline.inputs import expand_path

    found = [] if arguments == ["-"] else [place for text in arguments for place in expand_path(text)]
    if len(found) > 1 and all(place.is_dir() for place in found):
        return {name: [name] for name in sorted(map(str, found), key=_natural)}
    return {arguments[0] if len(arguments) == 1 else "": arguments}


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key by which runs/2 stands before runs/10.

    >>> sorted(["runs/10/x", "runs/2/x"], key=_natural)
    ['runs/2/x', 'runs/10/x']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _short(names: list[str]) -> list[str]:
    """Paths without the parts that all of them begin and end with; as they are where that would say nothing.

    >>> _short(["runs/1/score-prm", "runs/2/score-prm"])
    ['1', '2']
    """
    parts = [Path(name).parts for name in names]
    first = last = 0
    shortest = min(map(len, parts))
    while first < shortest and len({part[first] for part in parts}) == 1:
        first += 1
    while last < shortest - first and len({part[-1 - last] for part in parts}) == 1:
        last += 1
    short = ["/".join(part[first : len(part) - last]) for part in parts]
    return short if len(names) > 1 and all(short) else names


def _gate(text: str) -> tuple[str, str, float]:
    """A condition of --fail-on: metric, < or >, bound; raises UsageError."""
    import math

    from primecli.analysis.audit import METRICS
    from primecli.errors import UsageError

    match = re.fullmatch(r"\s*([\w-]+)\s*([<>])\s*(\S+)\s*", text)
    try:
        bound = float(match[3]) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or not math.isfinite(bound):
        hint = "quote it, or the shell takes < and > for files" if re.fullmatch(r"[\w-]+", text) else None
        raise UsageError(f"--fail-on {text!r} is not METRIC<VALUE or METRIC>VALUE, with a finite number", hint)
    if match[1] not in METRICS:
        raise UsageError(f"--fail-on {text!r}: there is no metric {match[1]}", f"there are {', '.join(METRICS)}")
    return match[1], match[2], bound


def _check(gates: Sequence[tuple[str, str, float]], reports: Mapping[str, Mapping[str, Any]]) -> None:
    """One line on stderr for each condition that holds, or that cannot be told; then GateError or InputError."""
    from primecli.errors import GateError, InputError, PrimecliError
    from primecli.pipeline.progress import say

    failures: list[PrimecliError] = []
    for label, report in reports.items():
        where = f"{label}: " if len(reports) > 1 else ""
        for name, sign, bound in gates:
            value = report["metrics"][name]["value"]
            if value is None:
                failures.append(
                    InputError(
                        f"{where}{name} cannot be computed, and --fail-on asks for {name}{sign}{bound:g}",
                        "it needs a group that holds both such a response and another"
                        if name.endswith("-preferred")
                        else "it needs right and wrong responses in one group, and scores that vary",
                    )
                )
            elif (value < bound) if sign == "<" else (value > bound):
                words = "below" if sign == "<" else "above"
                failures.append(GateError(f"{where}{name} is {value:.4g}, {words} the bound {bound:g}"))
    failures.sort(key=lambda failure: isinstance(failure, GateError))  # one that holds decides the exit code
    for failure in failures[:-1]:
        say("audit", str(failure))
    if failures:
        raise failures[-1]
