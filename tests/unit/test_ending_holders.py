# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who may be ended: the process that wrote the lease, and no other one that has its number, or is elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from everywhen.interfaces.cli.context import holder
from everywhen.interfaces.ending_holders import end_holder
from everywhen.repository.presence import SECOND, Presence
from everywhen.services.failures import Failed, NotFound
from tests.processes import TIED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are held by a descriptor on Linux alone")

HERE = holder()
DEAF = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
WAITING = "import sys; print(flush=True); sys.stdin.read()"


@contextmanager
def running(program: str = WAITING, name: str = "everywhen") -> Iterator[subprocess.Popen[str]]:
    """A process that looks like ours, unless it has another name."""
    command = [*TIED, sys.executable, "-c", program, name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def lease(pid: int, *, refreshed_ns: int | None = None) -> Presence:
    now = time.time_ns() if refreshed_ns is None else refreshed_ns
    return Presence("leases/x", replace(HERE, pid=pid), "mount web1", [], now, now)


def test_the_holder_is_ended() -> None:
    with running() as process:
        end_holder(lease(process.pid), HERE)
        assert process.wait() == -15


def test_another_process_of_that_number_is_not() -> None:
    with running() as process:
        with pytest.raises(NotFound, match="another program has that number"):
            end_holder(lease(process.pid, refreshed_ns=time.time_ns() - 3600 * SECOND), HERE)
        assert process.poll() is None
    with running(name="something else") as process:
        with pytest.raises(NotFound, match="another program has that number"):
            end_holder(lease(process.pid), HERE)
        assert process.poll() is None
    with pytest.raises(NotFound, match="has ended"):
        end_holder(lease(process.pid), HERE)


def test_nor_is_one_elsewhere() -> None:
    with running() as process:
        mine = lease(process.pid)
        there = mine.holder
        for elsewhere in (replace(there, host="kvm3"), replace(there, boot="before"), replace(there, pids="pid:[1]")):
            with pytest.raises(Failed, match=r"pid .* runs ") as refused:
                end_holder(replace(mine, holder=elsewhere), HERE)
            assert refused.value.safe == "Nothing was done."
        nowhere = replace(HERE, pids="")
        with pytest.raises(Failed):
            end_holder(replace(mine, holder=replace(mine.holder, pids="")), nowhere)
        assert process.poll() is None


def test_one_that_does_not_end_is_not_killed() -> None:
    with running(DEAF) as process:
        with pytest.raises(Failed, match="has not in 0 s") as refused:
            end_holder(lease(process.pid), HERE, patience_s=0.1)
        assert refused.value.do == [f"kill -9 {process.pid}"]
        assert process.poll() is None
