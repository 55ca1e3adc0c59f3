# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whose the taps on a VM are is seen from the socket they lead to, all of its path; as QEMU 7.2 tells of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everywhen.capture.leftovers import is_anothers
from everywhen.capture.qmp import Monitor


class Tapped:
    """A monitor of a VM with a tap that leads to this socket."""

    def __init__(self, socket: str) -> None:
        image = {"virtual-size": 1 << 20, "filename": f"nbd+unix:///disk-0?socket={socket}"}
        self._node = {"node-name": "everywhen-sink-0", "drv": "nbd", "image": image}

    def execute(self, name: str, arguments: Any = None, *, timeout: float | None = None) -> Any:
        assert name == "query-named-block-nodes"
        return [self._node]


@pytest.mark.parametrize(
    ("socket", "anothers"),
    [
        ("/run/web1/sockets/sink.sock", False),
        ("/srv/run/web1/sockets/sink.sock", True),
        ("/run/web1/sockets/sink.sock2", True),
        ("/run/web2/sockets/sink.sock", True),
    ],
)
def test_whose_they_are(socket: str, *, anothers: bool) -> None:
    monitor: Monitor = Tapped(socket)  # type: ignore[assignment]
    assert is_anothers(monitor, Path("/run/web1/sockets/sink.sock")) == anothers
