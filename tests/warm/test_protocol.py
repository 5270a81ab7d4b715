from __future__ import annotations

import os
import socket
import sys

import pytest

from primecli.warm.protocol import same_user

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm needs Linux")


def test_the_user_at_the_other_end_of_a_socket_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert same_user(ours)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert not same_user(ours)
