# SPDX-License-Identifier: AGPL-3.0-or-later
"""Kinds of entries by what Unix file systems store of them."""

from __future__ import annotations

import stat
from typing import Final

from everywhen.guest.errors import GuestDamaged
from everywhen.guest.tree import Kind

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.FOLDER,
    stat.S_IFLNK: Kind.LINK,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFIFO: Kind.PIPE,
    stat.S_IFSOCK: Kind.SOCKET,
}


def kind_of(mode: int, number: int) -> Kind:
    """What an inode is, by its mode. Raises GuestDamaged about the inode of this number."""
    found = _KINDS.get(stat.S_IFMT(mode))
    if found is None:
        raise GuestDamaged(f"inode {number} is of no kind (mode {mode:#o})")
    return found
