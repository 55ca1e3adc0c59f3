# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU may be a process of another user, as it is under libvirt: it must be let to our sockets, and to no more.

It needs x on every folder above (libvirt-qemu is refused below a folder of mode 0700), w on the sink's socket, and w on the
folder in which it makes the socket of an export. Whether a security module (AppArmor, SELinux) lets it, QEMU alone can say.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

_ACL = "system.posix_acl_access"
_OWN = ("Uid", "Gid", "Groups")


class NoAccess(Exception):
    """QEMU cannot be let to a socket. Says which folder is in the way."""


class ProcessUser(NamedTuple):
    """Whose process a QEMU is; `groups` has all of them."""

    uid: int
    gid: int
    groups: frozenset[int]

    @classmethod
    def of_label(cls, label: str) -> ProcessUser:
        """What libvirt calls it: `+64055:+105`, or names; '' is us. Raises NoAccess for a user that this host does not know."""
        if not label:
            return cls(os.geteuid(), os.getegid(), frozenset({os.getegid(), *os.getgroups()}))
        user, _, group = label.partition(":")
        try:
            uid = int(user) if user.lstrip("+").isdigit() else pwd.getpwnam(user).pw_uid
            gid = int(group) if group.lstrip("+").isdigit() else grp.getgrnam(group).gr_gid
        except (KeyError, ValueError) as error:
            raise NoAccess(f"QEMU runs as {label}, which is no user of this host") from error
        try:
            groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        except KeyError:
            groups = [gid]  # a number without a name is in no other group
        return cls(uid, gid, frozenset(groups))

    @classmethod
    def of_peer(cls, connection: socket.socket) -> ProcessUser:
        """Who is at the other end of a unix socket: the user it runs as now; what it listened as, where it is not seen."""
        pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return cls(uid, gid, frozenset({gid}))
        found = {
            name: [int(word) for word in rest.split()]
            for name, _, rest in (one.partition(":") for one in lines)
            if name in _OWN
        }
        effective = 1
        uid, gid = found["Uid"][effective], found["Gid"][effective]
        return cls(uid, gid, frozenset({gid, *found["Groups"]}))

    def may(self, path: Path, right: int) -> bool:
        """Whether it has these rights (bits of one rwx triple) on a file; where there is an ACL it is believed to grant them.

        Raises OSError.
        """
        status = path.stat()
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return (stat.S_IMODE(status.st_mode) >> shift) & right == right or _ACL in os.listxattr(path)


def let_in(path: Path, user: ProcessUser) -> None:
    """Let QEMU use a socket of ours, or make and find sockets in a folder. Raises NoAccess."""
    if path.is_dir():
        let_into(path, user)
    else:
        let_connect(path, user)


def let_into(folder: Path, user: ProcessUser) -> None:
    """Let QEMU make and find sockets in this folder. It is there, and both it and what it is in are ours. Raises NoAccess."""
    ours, *above = folder.absolute().parents
    for path in reversed(above):
        if not user.may(path, 1):
            raise NoAccess(f"QEMU runs as user {user.uid} and may not pass through {path}; choose a folder that all may enter")
    if not user.may(ours, 1):
        _give(ours, user, stat.S_IMODE(ours.stat().st_mode) | 0o010)
    if not user.may(folder, 3):
        _give(folder, user, 0o770)


def let_connect(socket_path: Path, user: ProcessUser) -> None:
    """Let QEMU connect to a socket of ours. Raises NoAccess."""
    if not user.may(socket_path, 2):
        _give(socket_path, user, 0o660)


def _give(path: Path, user: ProcessUser, mode: int) -> None:
    """To QEMU's group; the owner stays, and others have nothing."""
    try:
        os.chown(path, -1, user.gid)
        path.chmod(mode)
    except PermissionError as error:
        raise NoAccess(
            f"QEMU runs as user {user.uid} and cannot use {path}; only root, or a member of its group {user.gid}, can allow it"
        ) from error
