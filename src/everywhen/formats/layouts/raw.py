# SPDX-License-Identifier: AGPL-3.0-or-later
"""Raw: the file is the disk; parts that are not allocated are holes. There is no specification and no size limit."""

from __future__ import annotations

from everywhen.formats.layouts.layout import Composer, Identity, Layout
from everywhen.formats.layouts.runs import Runs


def lay_out(disk_size: int, allocated: Runs, identity: Identity) -> Layout:  # noqa: ARG001 (raw files have no identity)
    """A raw file of exactly `disk_size` bytes."""
    composer = Composer(disk_size, allocated)
    composer.place_disk_flat()
    return composer.layout("raw", disk_size, disk_size)
