# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `stat` tells of the tree: the guest's own of its files, where the kernel can take it; ours of the rest.

Ours belongs to whoever mounted it, and is for him alone. Source: stat(2), fuse(4) for what fits.
"""

from __future__ import annotations

import os
import stat
from hashlib import blake2b
from typing import Any

from everywhen.guest.tree import Entry, Kind
from everywhen.services.view.nodes import File, Folder, Link, Node, Special

_SECTOR = 512
_LAST_NS = ((1 << 63) - 1) * 1_000_000_000
_MOST_LINKS = (1 << 32) - 1
"""What the kernel takes; a guest's disk can claim more."""
_SPECIAL = {
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.PIPE: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


def attributes(node: Node, path: str) -> dict[str, Any]:
    """What `stat` tells of what is at a path."""
    match node:
        case Folder():
            own = {"st_mode": stat.S_IFDIR | 0o500, "st_nlink": 2}
        case Link(target):
            own = {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1, "st_size": len(os.fsencode(target))}
        case File(length, stored):
            own = {"st_mode": stat.S_IFREG | 0o400, "st_nlink": 1, "st_size": length, "st_blocks": -(-stored // _SECTOR)}
        case Special(_, entry):
            major, minor = entry.device or (0, 0)
            device = os.makedev(major & 0xFFF, minor & 0xFFFFF)  # as many bits as the kernel has
            own = {"st_mode": _SPECIAL[entry.kind] | 0o400, "st_nlink": 1, "st_rdev": device}
    times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.time_ns)
    own["st_ino"] = node.number or int.from_bytes(blake2b(os.fsencode(path), digest_size=8).digest()) | 1
    found = {**own, "st_uid": os.geteuid(), "st_gid": os.getegid(), **times}
    return found if node.guest is None else {**found, **_guest_attributes(node.guest, found["st_mode"])}


def _guest_attributes(entry: Entry, mode: int) -> dict[str, Any]:
    """What the guest's file system has of it in place of ours."""
    times = {"st_mtime": entry.times.modified, "st_ctime": entry.times.changed, "st_atime": entry.times.accessed}
    found = {name: max(-_LAST_NS, min(time, _LAST_NS)) for name, time in times.items() if time is not None}
    if entry.mode is not None:
        found |= {"st_mode": stat.S_IFMT(mode) | entry.mode}
    if entry.uid is not None and entry.gid is not None:
        found |= {"st_uid": entry.uid, "st_gid": entry.gid}
    return {**found, "st_nlink": min(entry.links, _MOST_LINKS)}
