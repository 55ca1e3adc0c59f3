# SPDX-License-Identifier: AGPL-3.0-or-later
"""Raw images and block devices: the disk's bytes are the file's bytes. Holes of a sparse file are zero extents."""

from __future__ import annotations

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.mapping import FlatMap
from everywhen.block.references import Chain


def open_raw(host: HostFile, chain: Chain) -> Image:  # noqa: ARG001 - the signature of all openers
    """Never fails: every file is a raw disk."""
    return Image("raw", FlatMap(host, host.size), [host])
