"""What the sides of `primecli warm` share: the words they send, where the helper listens, what has to be the same.

`primecli warm -- COMMAND` becomes COMMAND, as `ssh-agent COMMAND` does, and leaves a helper running beside it:

- The helper (helper.py) has imported torch and transformers, and forks a child for each stage.
- The front (front.py) is the process that the shell started. It passes its file descriptors, working directory,
  environment and so on to the helper over a Unix socket, forwards signals, and exits as the child does.
- The child (child.py) runs the stage exactly as the front would have, in the front's session and process group.

If the child could not do that, because something differs that a running process cannot change, the front runs the
stage itself and says why.

Standard library only and without `typing`: every start of primecli waits for this file.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # that of typing, without importing it
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Any

FAILURES = "PRIMECLI_RANK_FAILURES"
"""Variable with the directory where ranks that `--nproc` has started say why they failed; see parallel/launch.py."""

VARIABLE = "PRIMECLI_WARM"
"""The environment variable with the path of the helper's socket."""

READY = "ready"  # helper to front: send the request
FORKED = "forked"  # child to front: it has taken over, and the stage starts
REFUSED = "refused"  # helper or child to front, with a reason: run the stage yourself
EXIT = "exit"  # helper to front, with the child's exit code
SIGNAL = "signal"  # helper to front, with the signal that ended the child

LENGTH_BYTES = 8  # of a request's length, which is sent before it, together with the descriptors
MOST_DESCRIPTORS = 253  # Linux passes no more in one message (SCM_MAX_FD)


def first_word(arguments: Iterable[str]) -> str:
    """The first argument that is neither an option nor the value of --config: the command. Empty if there is none.

    >>> first_word(["--debug", "--config", "run.toml", "verify", "--quiet"])
    'verify'
    """
    words = iter(arguments)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def ready_file(socket_path: str) -> str:
    """The file that exists from the moment when the helper has imported everything until it exits."""
    return f"{os.path.dirname(socket_path)}/ready"


def same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as this process's user; the kernel vouches for the answer."""
    import socket
    import struct

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    _, user, _ = struct.unpack("iII", credentials)
    return bool(user == os.geteuid())


SESSION = "the session"  # in `surroundings`


def surroundings() -> dict[str, Any]:
    """What a process is given at its start and a forked child could not adopt, as JSON values by name.

    The names complete the sentence "… differs from the helper's".
    """
    import resource

    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
    namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        group = file.read()
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        status = file.read().splitlines()
    return {
        "Python": [sys.version, sys.prefix, *map(int, sys.flags), *sys.warnoptions],
        "the directory of primecli": os.path.dirname(os.path.dirname(os.path.realpath(__file__))),
        SESSION: os.getsid(0),
        "the user": [*os.getresuid(), *os.getresgid(), *sorted(os.getgroups())],
        "a resource limit (ulimit)": {name: list(limit) for name, limit in limits.items()},
        "the niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "the set of usable CPUs": sorted(os.sched_getaffinity(0)),
        "a namespace or the root directory": [namespaces, *os.stat("/")[1:3]],
        "a capability or seccomp mode": [line for line in status if line.startswith(("Cap", "NoNewPrivs", "Seccomp:"))],
        "the control group": group,
    }


PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent exits


def end_with_parent() -> None:
    """Makes the kernel end this process when the process that started it is gone, even by SIGKILL. On Linux only."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
