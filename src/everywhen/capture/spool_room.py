# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a spool leaves of the file system that it lies on: images that grow beside it must not run out of room because of it.

A repository that is away makes the spool grow, up to its limit. Where thin images lie on the same file system, a write of the
guest that needs room would fail there with ENOSPC, and QEMU stop the VM. So a spool that has come to the reserve is full.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_RESERVED_PART = 10
"""A tenth of the file system: a small one has little, and what is left should last for a while there, too."""
_RESERVED_MOST = 4 << 30
"""Not more: of 10 TB a tenth would be 1 TB, beside which capture can well go on. What the images take of it is taken once, no
longer twice: a guest that writes 10 MB/s to new places needs 7 minutes for 4 GiB, and a person, or a repository, comes then."""


def reserve(total: int) -> int:
    """Bytes that a spool leaves free of a file system of `total`."""
    return min(total // _RESERVED_PART, _RESERVED_MOST)


def room(folder: Path) -> int:
    """Bytes that a spool in that folder may still take; below 0 where less than the reserve is free. Raises OSError."""
    found = os.statvfs(folder)
    if not found.f_blocks:
        return sys.maxsize  # a file system that does not say how large it is
    return found.f_bavail * found.f_frsize - reserve(found.f_blocks * found.f_frsize)
