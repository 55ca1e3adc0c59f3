# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ending the process that holds a lease, from another terminal of the same host.

A number of a process is given again when that has ended, so the one that has it now must be the one that was meant: it began
before the lease was last refreshed, which is 15 s ago at most while its holder lives, and it is this program, since leases
are written by whoever may write to the repository. It is held by a descriptor, whose process cannot become another one
between the look and the signal. It is asked to end (SIGTERM), never killed.
Sources: pidfd_open(2), proc_pid_stat(5): field 22 is the begin in clock ticks since boot.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from everywhen.repository.presence import SECOND, Holder, Presence
from everywhen.services.failures import Failed, NotAllowed, NotFound

PATIENCE_S = 30.0
_PROGRAM = b"everywhen"
_BEGAN = 22 - 3
"""Of the fields behind the name, which may have blanks in it."""


def end_holder(one: Presence, here: Holder, *, patience_s: float = PATIENCE_S) -> None:
    """End the process, and wait until it has. Raises NotFound, NotAllowed, Failed."""
    who, pid = f"{one.what} (pid {one.holder.pid})", one.holder.pid
    if not hasattr(os, "pidfd_open"):
        raise Failed(f"{who}: only on Linux can it be ended from here.", do=["Ctrl-C where it runs"])
    if (one.holder.host, one.holder.boot, one.holder.pids) != (here.host, here.boot, here.pids) or not here.pids:
        where = f"on {one.holder.host}" if one.holder.host != here.host else "in another container, or before the last start"
        raise Failed(f"{who} runs {where}.", safe="Nothing was done.", do=["Ctrl-C, or everywhen sessions close, there"])
    with _held(pid, who) as process:
        if _began_ns(pid, who) > one.refreshed_ns or _PROGRAM not in _read(pid, "cmdline", who):
            raise NotFound(f"{who} has ended; another program has that number now.", safe="Nothing was done.")
        try:
            signal.pidfd_send_signal(process, signal.SIGTERM)
        except PermissionError as error:
            raise NotAllowed(f"{who} belongs to {one.holder.user or 'another user'}.", do=["Try with sudo."]) from error
        except ProcessLookupError:
            return
        ended = select.poll()
        ended.register(process, select.POLLIN)
        if not ended.poll(patience_s * 1000):
            raise Failed(f"{who} was asked to end, and has not in {patience_s:.0f} s.", do=[f"kill -9 {pid}"])


@contextmanager
def _held(pid: int, who: str) -> Iterator[int]:
    """A descriptor of the process. Raises NotFound."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise NotFound(f"{who} has ended.") from error
    try:
        yield process
    finally:
        os.close(process)


def _began_ns(pid: int, who: str) -> int:
    """When it began, in ns since 1970 UTC by the clock as it is now. Raises NotFound."""
    fields = _read(pid, "stat", who).rpartition(b")")[2].split()
    booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return booted_ns + int(fields[_BEGAN]) * SECOND // os.sysconf("SC_CLK_TCK")


def _read(pid: int, name: str, who: str) -> bytes:
    """What the kernel says of a process. Raises NotFound."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"{who} has ended.") from error
