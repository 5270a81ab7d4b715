"""The options that every stage has for its input and output."""

from __future__ import annotations

from dataclasses import dataclass

from primecli.options import Force, Options, Out, Partial, Quiet, Shards


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What every stage has that writes something."""

    force: Force = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """What every command has that reads shards."""

    shards: Shards = ()
    partial: Partial = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class StageOptions(InputOptions, RunOptions):
    """What every stage has that makes shards from shards."""

    out: Out = None
    force: Force = False
    partial: Partial = False
    quiet: Quiet = False
