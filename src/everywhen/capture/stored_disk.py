# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk's image, as whoever runs its VM says where it is. It needs no Linux: what is kept about images is read anywhere."""

from __future__ import annotations

from typing import NamedTuple


class StoredDisk(NamedTuple):
    """A disk's image: a file or block device, and its format (`raw`, `qcow2`, …; '' where nobody says); or why this host
    cannot read it."""

    path: str
    image_format: str
    why_not: str = ""
