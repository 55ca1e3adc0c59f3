# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest that we stop goes on, whatever happens to us meanwhile."""

from __future__ import annotations

from typing import Any, cast

import pytest

from everywhen.capture import leftovers, standing_still, tap
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorBusy
from everywhen.formats.fields import Json


class Qemu:
    """With a guest that runs; `fails`: what is answered to a command instead, each time less."""

    def __init__(self, **fails: list[BaseException]) -> None:
        self.status, self.nodes = "running", set[str]()
        self.fails, self.refuses = fails, set[str]()
        self.told: list[str] = []

    def next_event(self, _timeout: float, _wanted: object) -> None:
        """It tells nothing."""

    def execute(self, name: str, arguments: Json | None = None, *, timeout: float | None = None) -> Any:
        self.told.append(name)
        if name in self.refuses:
            raise CommandFailed(name, "CommandNotFound", "no such command")
        match name:
            case "query-status":
                return {"status": self.status}
            case "query-named-block-nodes":
                image = {"virtual-size": 512}
                return [{"node-name": node, "drv": "null-co", "image": image} for node in self.nodes]
            case "query-block-jobs" | "query-block-exports":
                return []
            case "blockdev-add":
                self.nodes.add(str((arguments or {})["node-name"]))
            case "blockdev-del":
                self.nodes.remove(str((arguments or {})["node-name"]))
            case "stop":
                self.status = "paused"  # also where the answer comes too late
            case "block-job-cancel":
                assert self.status == "paused"
        if self.fails.get(name.partition("-")[0]):
            raise self.fails[name.partition("-")[0]].pop()
        if name == "cont":
            self.status = "running"
        return {}


@pytest.fixture(autouse=True)
def _told_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "_LATE_S", 0.0)


def ended(qemu: Qemu) -> None:
    standing_still.end_job(cast("Monitor", qemu), "everywhen-tap-0")


def test_it_stands_still_only_while_the_job_is_ended() -> None:
    qemu = Qemu()
    ended(qemu)
    assert [name for name in qemu.told if not name.startswith("query")] == [
        *("blockdev-add", "stop", "block-job-cancel", "cont", "blockdev-del")
    ]
    assert (qemu.status, qemu.nodes) == ("running", set())


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("stop", MonitorBusy("it flushes")),
        ("block", MonitorBusy("it is saved")),
        ("block", KeyboardInterrupt()),
        ("stop", KeyboardInterrupt()),
    ],
)
def test_it_goes_on_whatever_comes_between(command: str, error: BaseException) -> None:
    qemu = Qemu(**{command: [error]})
    with pytest.raises(type(error)):
        ended(qemu)
    assert (qemu.status, qemu.nodes) == ("running", set())


def test_a_busy_monitor_is_asked_again() -> None:
    qemu = Qemu(cont=[MonitorBusy("libvirt"), MonitorBusy("libvirt")])
    ended(qemu)
    assert qemu.status == "running"


def test_the_next_run_lets_it_go_on() -> None:
    """Where a run of ours was killed, or the monitor had no time."""
    qemu = Qemu(cont=[MonitorBusy("libvirt") for _ in range(3)])
    with pytest.raises(MonitorBusy):
        ended(qemu)
    assert qemu.status == "paused"
    leftovers.clear(cast("Monitor", qemu), answered=False)
    assert (qemu.status, qemu.nodes) == ("running", set())


def test_a_guest_that_somebody_else_has_stopped_stays_so() -> None:
    qemu = Qemu()
    qemu.status = "paused"
    ended(qemu)
    assert not {"stop", "cont"} & set(qemu.told)
    leftovers.clear(cast("Monitor", qemu), answered=False)
    assert qemu.status == "paused"


def test_a_storage_daemon_has_no_guest() -> None:
    qemu = Qemu()
    qemu.refuses, qemu.status = {"query-status"}, "paused"
    ended(qemu)
    assert "stop" not in qemu.told
