"""The options for input and output that all stages share."""

from __future__ import annotations

from dataclasses import dataclass

from primecli.options import Force, Options, Out, Partial, Quiet, Shards


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The options of every stage that writes something."""

    force: Force = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """The options of every command that reads shards."""

    shards: Shards = ()
    partial: Partial = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class StageOptions(InputOptions, RunOptions):
    """The options of every stage that makes shards from shards."""

    out: Out = None
    force: Force = False
    partial: Partial = False
    quiet: Quiet = False
