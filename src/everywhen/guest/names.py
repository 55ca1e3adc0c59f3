# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names in folders: which can be shown, and what a name that cannot is an error of."""

from __future__ import annotations

import os
from collections.abc import Callable

from everywhen.guest.errors import GuestDamaged, GuestError, parsing
from everywhen.guest.tree import Entry, Unreadable

LONGEST = 1024
"""Bytes or characters in a name; no file system has more (Btrfs, ext, XFS, NTFS: 255)."""


def from_bytes(name: bytes) -> str:
    """A name of bytes as text, bytes that are no UTF-8 kept as surrogates (PEP 383)."""
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes | None:
    """The bytes of such a name again; None where it cannot have come from bytes (NTFS's unpaired surrogates)."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


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


def shown(name: str, make: Callable[[], Entry]) -> Entry | Unreadable:
    """An entry of this name, as `make` has it, for the listing of its folder; why there can be none in its place."""
    wrong = name_error(name)
    if wrong:
        return Unreadable(name, wrong)
    try:
        with parsing(name):
            return make()
    except GuestError as error:
        return Unreadable(name, error)
