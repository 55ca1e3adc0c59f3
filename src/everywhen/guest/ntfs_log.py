# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether an NTFS was unmounted: its $LogFile says so in its first or second page (ntfs-3g: logfile.h). Little-endian.

A page: `RSTR`, u32 bytes of a page at 16, u16 place of the restart area at 24. There: u64 number of its newest record, u16,
u16, u16 first client that uses the log (0xFFFF: none), u16 flags (2: unmounted). A log of 0xFF all over is empty.
"""

from __future__ import annotations

import struct
from typing import Final

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems.ntfs import repaired
from everywhen.guest.tree import Content

_PAGE: Final = 4096
_CLEAN: Final = 2
_NOBODY: Final = 0xFFFF


def is_clean(log: Content) -> bool:
    """True after an unmount, and where there is no log that says otherwise."""
    newest, clean = -1, True
    for place in (0, _PAGE):
        block = log.read(place, _PAGE)
        try:
            page = repaired(block, b"RSTR")
            (at,) = struct.unpack_from("<H", page, 24)
            number, _clients, _free, user, flags = struct.unpack_from("<QHHHH", page, at)
        except (FormatError, struct.error):
            continue
        if number > newest:
            newest, clean = number, user == _NOBODY or bool(flags & _CLEAN)
    return clean
