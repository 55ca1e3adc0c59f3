# SPDX-License-Identifier: AGPL-3.0-or-later
"""What QEMU says of itself and its guest's way elsewhere, and what follows for capture. As QEMU 7.2 said it, or its schema."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from everywhen.capture.migration import COMING, LEFT, departure, why_away
from everywhen.capture.qmp import CommandFailed, MonitorError, QmpMonitor

RAM = {"transferred": 1, "total": 2}


class Saying(QmpMonitor):
    """A monitor with an answer for each command; it refuses what it has none for, as a storage daemon does."""

    def __init__(self, **answers: Any) -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        theirs.close()
        self._told = answers
        super().__init__(ours, 1)
        self.close()

    def execute(self, name: str, arguments: Any = None, *, timeout: float | None = None) -> Any:
        if name == "qmp_capabilities":
            return {}
        if name.replace("-", "_") not in self._told:
            raise CommandFailed(name, "CommandNotFound", f"The command {name} has not been found")
        return self._told[name.replace("-", "_")]


@pytest.mark.parametrize(
    ("state", "status", "why"),
    [
        ("running", "none", None),
        ("paused", "none", None),
        ("prelaunch", "none", None),
        ("inmigrate", "active", COMING),
        ("postmigrate", "completed", LEFT),
        # Its guest stands still for what was not sent yet, and may run on here when that fails.
        ("finish-migrate", "active", None),
        ("finish-migrate", "device", None),
        # It runs there already, and what was not sent yet is fetched.
        ("finish-migrate", "postcopy-active", LEFT),
        ("finish-migrate", "postcopy-paused", LEFT),
    ],
)
def test_where_the_guest_is(state: str, status: str, why: str | None) -> None:
    monitor = Saying(query_status={"status": state}, query_migrate={"status": status, "ram": RAM})
    assert why_away(monitor) == why


@pytest.mark.parametrize(
    ("answer", "may_have"),
    [
        ({}, False),
        ({"status": "completed"}, False),  # it came from elsewhere
        ({"status": "completed", "ram": RAM, "total-time": 0}, False),  # a snapshot was made
        ({"status": "completed", "ram": RAM, "total-time": 12}, True),
        ({"status": "postcopy-paused", "ram": RAM, "total-time": 12}, True),
        ({"status": "active", "ram": RAM, "total-time": 12}, False),
        ({"status": "failed", "ram": RAM, "total-time": 12}, False),
        ({"status": "cancelled"}, False),
    ],
)
def test_whether_it_may_have_run_elsewhere(answer: dict[str, Any], may_have: bool) -> None:
    assert (departure(Saying(query_migrate=answer)) is not None) == may_have


@pytest.mark.parametrize("other", [{"total-time": 13}, {"downtime": 4}, {"ram": {"transferred": 2, "total": 2}}])
def test_one_time_elsewhere_is_told_from_another(other: dict[str, Any]) -> None:
    one = {"status": "completed", "ram": RAM, "total-time": 12, "downtime": 3}
    assert departure(Saying(query_migrate=one)) == departure(Saying(query_migrate=dict(reversed(one.items()))))
    assert departure(Saying(query_migrate=one)) != departure(Saying(query_migrate=one | other))


def test_a_storage_daemon_has_no_guest_that_moves() -> None:
    assert why_away(Saying()) is None
    assert departure(Saying()) is None


def test_an_answer_that_is_none() -> None:
    with pytest.raises(MonitorError, match="query-status otherwise than QEMU does"):
        why_away(Saying(query_status={"status": 7}))
