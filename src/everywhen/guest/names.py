# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names in folders: which can be shown, and what a name that cannot is an error of."""

from __future__ import annotations

import os

from everywhen.guest.errors import GuestDamaged

LONGEST = 1024
"""Bytes or characters in a name; no file system has more (Btrfs, ext, XFS, NTFS: 255)."""


def from_bytes(name: bytes) -> str:
    """A name of bytes as text, bytes that are no UTF-8 kept as surrogates (PEP 383)."""
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    """The bytes of such a name again. Raises GuestDamaged where it cannot have come from bytes (NTFS's unpaired surrogates)."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise GuestDamaged(f"{name!r}: no file system of bytes can have this name") from error


def name_error(name: str) -> GuestDamaged | None:
    """Why an entry of this name must not be shown: taken as a path it would lead elsewhere. None if it may.

    No guest can make such names, but whoever writes to its disk can (docs/threat-model.md).
    """
    if not name:
        return GuestDamaged("an entry without a name")
    if name in (os.curdir, os.pardir) or "/" in name or "\0" in name:
        return GuestDamaged(f"{name!r}: not a name but a path; it is not followed")
    if len(name) > LONGEST:
        return GuestDamaged(f"{name[:40]!r}…: a name of {len(name)} characters")
    return None
