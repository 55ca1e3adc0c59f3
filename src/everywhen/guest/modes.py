# SPDX-License-Identifier: AGPL-3.0-or-later
"""Kinds of entries by what Unix file systems store of them."""

from __future__ import annotations

import stat
from typing import Final

from everywhen.guest.tree import Kind

KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.FOLDER,
    stat.S_IFLNK: Kind.LINK,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFIFO: Kind.PIPE,
    stat.S_IFSOCK: Kind.SOCKET,
}
