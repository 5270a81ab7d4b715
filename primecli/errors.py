"""Errors that a user meets: one line that says what happened, where and what to do, and an exit code.

Everything that primecli raises on purpose is a `PrimecliError`. Any other exception that reaches the command line is a
bug in primecli; it too ends in one line, and `--debug` shows the traceback.

| exit code | meaning                                                                |
|-----------|------------------------------------------------------------------------|
| 0         | done, also when the reader of the pipe closed it                       |
| 1         | failed: disk, stdout, memory, lock, a model that fails, a bug          |
| 2         | usage: the command line is wrong                                       |
| 3         | the input is corrupt, incomplete or lacks needed columns               |
| 4         | finished, but more rows were quarantined than `--max-errors` allows    |
| 5         | a gate that the user asked for was not met                             |
| 130       | interrupted                                                            |
"""

from __future__ import annotations

import errno


class PrimecliError(Exception):
    """Something that the user can act on; exit code 1.

    message: what happened, and where. hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its type where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


NO_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "cannot allocate memory",
    "unable to mmap",  # torch, of a file
    "failed to map segment",  # the loader of shared libraries
    "failed to allocate memory",
    "std::bad_alloc",
    "can't start new thread",  # there is no room for its stack
    "failed to launch worker thread",  # nor for one of Arrow's
    "cuda error: out of memory",  # from the driver, when not even a context fits
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
"""Texts, in lower case, of errors that mean a lack of memory and have no type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library means that memory has run out, a GPU's too. Imports none of them.

    >>> is_out_of_memory(ImportError("libtorch.so: failed to map segment from shared object"))
    True
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the second is torch's
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return any(mark in text for mark in NO_MEMORY)


class UsageError(PrimecliError):
    """The command line is wrong, or asks for things that do not go together; exit code 2."""

    exit_code = 2


class InputError(PrimecliError):
    """The input is corrupt, incomplete or lacks needed columns; exit code 3."""

    exit_code = 3


class MissingFileError(InputError):
    """A file that was to be read does not exist; exit code 3."""


class NothingCameError(InputError):
    """No shard came through the pipe, and the stage before has said why; ends with exit code 3 and without a line."""


class QuarantineError(PrimecliError):
    """The stage finished, but too many rows were quarantined; exit code 4."""

    exit_code = 4


class GateError(PrimecliError):
    """A gate that the user asked for was not met; exit code 5."""

    exit_code = 5


class Interrupted(BaseException):
    """Ended by SIGINT, SIGTERM or SIGHUP; exit code 130. It is not an `Exception`, so that no handler swallows it."""

    exit_code = 130

    @classmethod
    def by_signal(cls, name: str) -> Interrupted:
        """The interrupt by a signal of this name, such as SIGTERM."""
        return cls(f"interrupted by {name} (run the same command again to continue)")


class ReaderClosed(Exception):
    """The reader of stdout has gone. This is a normal end (exit code 0), raised so that a stage stops early."""
