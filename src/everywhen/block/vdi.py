# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading VDI (VirtualBox): dynamic and fixed.

Own code, not dissect.hypervisor (3.21): one table, which must be checked and turned into extents here anyway.
"""

from __future__ import annotations

import numpy as np

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged, layout_errors
from everywhen.block.mapping import PARENT, PLAIN, WINDOW_ENTRIES, ZERO, BlockMap, Units
from everywhen.block.references import Chain
from everywhen.formats.images import vdi as layout


def open_vdi(host: HostFile, chain: Chain) -> Image:  # noqa: ARG001 - the signature of all openers
    """Raises ImageError for what cannot be read for certain."""
    with layout_errors(host.path):
        header = layout.parse_header(host.read_up_to(0, layout.HEADER_BYTES))
    blocks = -(-header.size // header.block_size)
    table = np.frombuffer(host.read(header.table_offset, blocks * 4), dtype="<u4")
    used = table[table < layout.ZERO]
    if len(np.unique(used)) < len(used):
        raise ImageDamaged(f"{host.path}: two blocks of the VDI are at the same place")

    def decode(first: int, last: int) -> Units:
        part = table[first:last]
        kinds = np.where(part == layout.UNALLOCATED, PARENT, np.where(part == layout.ZERO, ZERO, PLAIN)).astype(np.uint8)
        return Units(header.block_size, kinds, header.data_offset + part.astype(np.int64) * header.block_size)

    return Image("vdi", BlockMap(host, header.size, header.block_size, decode, WINDOW_ENTRIES), [host])
