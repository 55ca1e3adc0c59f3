# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the process that parses guests' file systems gives up before it reads a byte of theirs. There is no way back from it.

| what | how |
|---|---|
| memory | RLIMIT_AS, RLIMIT_DATA: 1 GiB; what is beyond is a MemoryError, which fails one question |
| files, sockets | RLIMIT_NOFILE: no descriptor is left; RLIMIT_FSIZE, RLIMIT_CORE: 0; Landlock, where the kernel has it |
| processes | RLIMIT_NPROC: 0; Linux: PR_SET_NO_NEW_PRIVS |
| user | root becomes nobody (limits on processes do not hold for root) |
| time | a timer for each question, of processor time: who asks may be gone |

PR_SET_PDEATHSIG is not used: it fires when the *thread* that started the process ends, and servers' threads come and go.
Who asks hangs up when it ends, and that ends a process that reads or waits; one that neither reads nor waits is ended by
its timer.

Sources: setrlimit(2), prctl(2), landlock(7), include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

MEMORY = 1 << 30
"""Bytes. Python, our code and the parsers take 150 MiB of addresses, the cache of each disk 16 MiB."""
_NOBODY = 65534
_SET_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
"""The same numbers on all architectures."""
_LANDLOCK_VERSION = 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights to files there are, by version of Landlock; all are given up."""
_NET_RIGHTS = 2
_SCOPES = 2


def gathered(descriptors: Iterable[int]) -> list[int]:
    """Move these to the lowest numbers after standard error, in their order by number, and close all others' names for them."""
    found = []
    for number, descriptor in enumerate(sorted(descriptors), 3):
        if number != descriptor:  # never one that is still to be moved: those are larger
            os.dup2(descriptor, number, inheritable=False)
            os.close(descriptor)
        found.append(number)
    return found


def confine(descriptors: int) -> None:
    """Give all of it up; `descriptors` are open, with the lowest numbers. Raises OSError where a limit cannot be set."""
    if os.geteuid() == 0:
        with suppress(OSError):  # in a container there may be no other user; the limits hold all the same
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    if sys.platform == "linux":
        _without_new_rights()
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, descriptors),
    ):
        resource.setrlimit(limit, (most, most))


def timed(seconds: float) -> None:
    """From now on the process ends after so many seconds of processor time; 0: it does not."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _without_new_rights() -> None:
    """No rights by executing what has some; no files at all where the kernel has Landlock (5.13, and it is switched on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return
    files = (1 << _FILE_RIGHTS.get(version, max(_FILE_RIGHTS.values()))) - 1
    rules = struct.pack("=QQQ", files, (1 << _NET_RIGHTS) - 1, (1 << _SCOPES) - 1)
    rules = rules[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0 or libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "Landlock")
    os.close(ruleset)
