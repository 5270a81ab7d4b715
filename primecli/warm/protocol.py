"""What the three sides of `primecli warm` share: which stages are forked, where the helper listens, what must be alike.

`primecli warm -- COMMAND` becomes COMMAND, as `ssh-agent COMMAND` does, and leaves a helper beside it:

- the helper (helper.py) has imported torch and transformers, and forks a child for each stage;
- the front (front.py) is the process that the shell started. It passes its file descriptors, working directory,
  environment and so on to the helper over a Unix socket, forwards signals and ends as the child ends.

The child runs the stage as the front would have, in the front's session and process group. Where it could not, because
something differs that no process can change later, the front starts the stage in the plain way and says why.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own, without the import: every start of primecli waits for this file
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Any

VARIABLE = "PRIMECLI_WARM"
"""The environment variable that names the helper's socket."""

READY = "ready"  # the helper to the front: send the request
FORKED = "forked"  # the child to the front: it is what the front would have been, the stage begins
PLAIN = "plain"  # the helper or the child to the front, and a reason: start the stage yourself
EXIT = "exit"  # the helper to the front, and the child's exit code
SIGNAL = "signal"  # the helper to the front, and the signal that ended the child

LENGTH_BYTES = 8  # of a request's length, which precedes it together with the descriptors
MOST_DESCRIPTORS = 253  # that Linux passes in one message


def first_word(arguments: Iterable[str]) -> str:
    """The first argument that is neither an option nor the value of --config: the command. Empty where there is none.

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
    """A file that is there from when the helper has imported everything, until it ends."""
    return f"{os.path.dirname(socket_path)}/ready"


def same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is of this process's user, which the kernel says."""
    import socket
    import struct

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    _, user, _ = struct.unpack("iII", credentials)
    return bool(user == os.geteuid())


def surroundings() -> dict[str, Any]:
    """What a process is given at its start and a forked child could not take over: by name, JSON values."""
    import resource

    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
    namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        group = file.read()
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        status = file.read().splitlines()
    return {
        "Python": [sys.version, sys.prefix, *map(int, sys.flags), *sys.warnoptions],
        "the place of primecli": os.path.dirname(os.path.dirname(os.path.realpath(__file__))),
        "the session": os.getsid(0),
        "the user": [*os.getresuid(), *os.getresgid(), *sorted(os.getgroups())],
        "a resource limit (ulimit)": {name: list(limit) for name, limit in limits.items()},
        "the niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "the CPUs allowed": sorted(os.sched_getaffinity(0)),
        "a namespace or the root directory": [namespaces, *os.stat("/")[1:3]],
        "a capability or seccomp": [line for line in status if line.startswith(("Cap", "NoNewPrivs", "Seccomp:"))],
        "the control group": group,
    }
