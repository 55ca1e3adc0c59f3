# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading VHD: fixed, dynamic and differencing.

Own code, not dissect.hypervisor (3.21), which cannot read differencing images and does not check tables; qemu-img
ignores the parent and takes some creators' geometry for the size. The footer's current size counts here. In dynamic
images the blocks' bitmaps are ignored, as QEMU and Windows do: an allocated block is read as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged, layout_errors
from everywhen.block.mapping import PARENT, PLAIN, WINDOW_ENTRIES, BlockMap, FlatMap, Mapping, Units, Window
from everywhen.block.partial_blocks import Blocks, blocks_per_window, window_of_blocks
from everywhen.block.references import Chain, windows_names
from everywhen.formats.errors import FormatError
from everywhen.formats.images import vhd as layout
from everywhen.formats.images.vhd import SECTOR, VhdDynamicHeader, VhdFooter


def open_vhd(host: HostFile, chain: Chain) -> Image:
    """Raises ImageError for what cannot be read for certain."""
    footer = _read_footer(host)
    identity = footer.unique_id.hex()
    if footer.disk_type == layout.FIXED:
        if footer.size > host.size - layout.FOOTER_BYTES + 1:
            raise ImageDamaged(f"{host.path} is truncated: it has {host.size} bytes for a disk of {footer.size}")
        return Image("vhd", FlatMap(host, footer.size), [host], identity=identity)
    with layout_errors(host.path):
        raw = host.read_up_to(footer.header_offset, layout.DYNAMIC_HEADER_BYTES)
        header = layout.parse_dynamic_header(raw, footer.size)
    table = _read_table(host, footer, header)
    if footer.disk_type == layout.DYNAMIC:
        return Image("vhd", _dynamic_map(host, footer, header, table), [host], identity=identity)
    mapping: Mapping = _DifferencingMap(host, footer.size, header, table)
    parent = chain.open_identified_parent(_parent_names(host, header), "vhd", {header.parent_id.hex()})
    return Image("vhd", mapping, [host], parent, identity=identity)


def _read_footer(host: HostFile) -> VhdFooter:
    """The copy at the front, where dynamic images have one, else the footer at the end (of 512 or 511 bytes)."""
    head, tail = host.read_up_to(0, 512), host.read(max(0, host.size - 512), min(512, host.size))
    first: FormatError | None = None
    for raw in (head, tail, tail[1:]):
        if not raw.startswith(layout.COOKIE):
            continue
        try:
            footer = layout.parse_footer(raw)
        except FormatError as error:
            first = first or error
            continue
        if footer.disk_type == layout.FIXED and raw is head:
            continue  # the content of a disk that holds a VHD
        return footer
    with layout_errors(host.path):
        if first:
            raise first
        return layout.parse_footer(tail)


def _read_table(host: HostFile, footer: VhdFooter, header: VhdDynamicHeader) -> NDArray[np.int64]:
    """Offset of each block's bitmap, -1 for none; checked not to overlap."""
    blocks = -(-footer.size // header.block_size)
    sectors = np.frombuffer(host.read(header.table_offset, blocks * 4), dtype=">u4").astype(np.int64)
    table = np.where(sectors == layout.UNALLOCATED, -1, sectors * SECTOR)
    used = np.sort(table[table >= 0])
    if (np.diff(used) < header.block_size + header.bitmap_size).any():
        raise ImageDamaged(f"{host.path}: two blocks of the VHD are at the same place")
    return table


def _dynamic_map(host: HostFile, footer: VhdFooter, header: VhdDynamicHeader, table: NDArray[np.int64]) -> Mapping:
    def decode(first: int, last: int) -> Units:
        part = table[first:last]
        return Units(header.block_size, np.where(part < 0, PARENT, PLAIN).astype(np.uint8), part + header.bitmap_size)

    return BlockMap(host, footer.size, header.block_size, decode, WINDOW_ENTRIES)


class _DifferencingMap:
    """Blocks whose bitmaps say which sectors are the child's."""

    def __init__(self, host: HostFile, size: int, header: VhdDynamicHeader, table: NDArray[np.int64]) -> None:
        self.size = size
        self._host, self._header, self._table = host, header, table
        self._per_window = blocks_per_window(header.block_size, SECTOR)

    def window(self, offset: int) -> Window:
        header = self._header
        first = offset // header.block_size // self._per_window * self._per_window
        table = self._table[first : first + self._per_window]
        partial = np.flatnonzero(table >= 0).astype(np.int64)
        sectors = header.block_size // SECTOR
        raw = b"".join(self._host.read(at, header.bitmap_size) for at in table[partial].tolist())
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8).reshape(-1, header.bitmap_size), axis=1)[:, :sectors]
        blocks = Blocks(np.full(len(table), PARENT, dtype=np.uint8), table + header.bitmap_size, partial, bits != 0)
        start = first * header.block_size
        end = min(start + len(table) * header.block_size, self.size)
        return window_of_blocks(start, end, header.block_size, blocks, self._host)


def _parent_names(host: HostFile, header: VhdDynamicHeader) -> list[str]:
    spelled: dict[bytes, str] = {}
    for locator in header.locators:
        raw = host.read_up_to(locator.offset, locator.length)
        spelled[locator.platform] = raw.decode("utf-16-le", "replace").rstrip("\0")
    return windows_names(spelled.get(b"W2ru", ""), spelled.get(b"W2ku", "") or header.parent_name)
