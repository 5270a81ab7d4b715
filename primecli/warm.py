"""What the three sides of `primecli warm` share: which stages are forked, where the helper listens, what must be alike.

`primecli warm -- COMMAND` becomes COMMAND, as `ssh-agent COMMAND` does, and leaves a helper beside it:

- the helper (warm_helper.py) has imported torch and transformers, and forks a child for each stage;
- the front (warm_front.py) is the process that the shell started. It passes its file descriptors, working directory,
  environment and so on to the helper over a Unix socket, forwards signals and ends as the child ends.

The child runs the stage as the front would have, in the front's session and process group. Where it could not, because
something differs that no process can change later, the front starts the stage in the plain way and says why.
"""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLE = "PRIMECLI_WARM"
"""The environment variable that names the helper's socket."""

STAGES = frozenset({"generate", "update-prm", "score-prm", "compute-advantages", "update-policy"})
"""The commands that need torch, and so are forked from the helper. A test compares this with what they import."""

READY = "ready"  # the helper to the front: send the request
FORKED = "forked"  # the child to the front: it is what the front would have been, the stage begins
PLAIN = "plain"  # the helper or the child to the front, and a reason: start the stage yourself
EXIT = "exit"  # the helper to the front, and the child's exit code
SIGNAL = "signal"  # the helper to the front, and the signal that ended the child

LENGTH_BYTES = 8  # of a request's length, which precedes it together with the descriptors
MOST_DESCRIPTORS = 253  # that Linux passes in one message


def surroundings() -> dict[str, Any]:
    """What a process is given at its start and a forked child could not take over: by name, JSON values."""
    import resource

    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
    namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        group = file.read()
    return {
        "Python": [sys.version, sys.prefix, *map(int, sys.flags), *sys.warnoptions],
        "the place of primecli": os.path.dirname(os.path.realpath(__file__)),
        "the session": os.getsid(0),
        "the user": [*os.getresuid(), *os.getresgid(), *sorted(os.getgroups())],
        "a resource limit (ulimit)": {name: list(limit) for name, limit in limits.items()},
        "the niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "the CPUs allowed": sorted(os.sched_getaffinity(0)),
        "a namespace": namespaces,
        "the control group": group,
    }
