# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading VHDX: fixed, dynamic and differencing; a log that was not replayed is replayed in memory (replayed_file.py).

Own code, not dissect.hypervisor (3.21), which checks neither checksums nor tables and ignores the log; qemu-img cannot
read differencing images.
"""

from __future__ import annotations

from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged, ImageUnsupported, layout_errors
from everywhen.block.mapping import PARENT, PLAIN, ZERO, Window
from everywhen.block.partial_blocks import Blocks, blocks_per_window, window_of_blocks
from everywhen.block.references import Chain, windows_names
from everywhen.block.replayed_file import replay
from everywhen.formats.images import vhdx as layout
from everywhen.formats.images.vhdx import MIB, Region, VhdxDisk, VhdxHeader

_STATE: np.uint64 = np.uint64(7)
_RESERVED: np.uint64 = np.uint64(0xFFFF8)
_MOST_ENTRIES = 1 << 23  # 64 MiB; with Hyper-V's blocks of 32 MiB that would be 256 TiB
_SECTORS_IN_BITMAP = 1 << 23  # a sector bitmap block of 1 MiB has a bit for each


def open_vhdx(host: HostFile, chain: Chain) -> Image:
    """Raises ImageError for what cannot be read for certain."""
    with layout_errors(host.path):
        layout.check_identifier(host.read_up_to(0, 8))
        header = _read_header(host)
        if header.log_guid != layout.NO_GUID:
            original, host = host, chain.adopt(replay(host, header))
            original.close()
            header = _read_header(host)
        size = layout.REGION_TABLE_BYTES
        table, metadata = layout.parse_regions(*(host.read_up_to(at, size) for at in layout.REGION_TABLE_OFFSETS))
        disk = layout.parse_metadata(host.read_up_to(metadata.offset, min(metadata.length, 2 * MIB)))
    mapping = _VhdxMap(host, disk, _read_table(host, disk, table))
    identity = str(UUID(bytes_le=header.data_write_guid))
    if disk.parent is None:
        return Image("vhdx", mapping, [host], identity=identity)
    absolute = disk.parent.get("absolute_win32_path", "") or disk.parent.get("volume_path", "")
    names = windows_names(disk.parent.get("relative_path", ""), absolute)
    linkages = {disk.parent.get(key, "").strip("{}").lower() for key in ("parent_linkage", "parent_linkage2")}
    parent = chain.open_identified_parent(names, "vhdx", linkages - {""})
    return Image("vhdx", mapping, [host], parent, identity=identity)


def _read_header(host: HostFile) -> VhdxHeader:
    return layout.choose_header(*(host.read_up_to(at, layout.HEADER_BYTES) for at in layout.HEADER_OFFSETS))


def _read_table(host: HostFile, disk: VhdxDisk, region: Region) -> NDArray[np.uint64]:
    """All entries that the disk's size needs, payload and bitmap blocks interleaved; the places checked not to overlap."""
    payload = -(-disk.size // disk.block_size)
    entries = payload + (payload - 1) // disk.chunk_ratio if disk.parent is None else _with_bitmaps(payload, disk)
    if entries > _MOST_ENTRIES:
        raise ImageUnsupported(f"{host.path}: the block table of the VHDX has {entries} entries, which is too long")
    if entries * 8 > region.length:
        raise ImageDamaged(f"{host.path}: the block table of the VHDX does not cover the disk")
    table = np.frombuffer(host.read(region.offset, max(0, entries) * 8), dtype="<u8")
    states = table & _STATE
    payload_here = (np.arange(len(table)) % (disk.chunk_ratio + 1) != disk.chunk_ratio) & (states >= layout.STATE_FULLY_PRESENT)
    used = np.sort((table[payload_here] >> np.uint64(20)).astype(np.int64))
    if (np.diff(used) < disk.block_size // MIB).any() or (used[:1] < 1).any():
        raise ImageDamaged(f"{host.path}: two blocks of the VHDX are at the same place")
    if (table[payload_here] & _RESERVED).any():
        raise ImageDamaged(f"{host.path}: the block table of the VHDX has an impossible entry")
    return table


def _with_bitmaps(payload: int, disk: VhdxDisk) -> int:
    """Entries of a differencing image: its last chunk is whole, so that its bitmap block has an entry."""
    return -(-payload // disk.chunk_ratio) * (disk.chunk_ratio + 1)


class _VhdxMap:
    """Payload blocks; of those that are here in part, the sector bitmap says which sectors are."""

    def __init__(self, host: HostFile, disk: VhdxDisk, table: NDArray[np.uint64]) -> None:
        self.size = disk.size
        self._host, self._disk, self._table = host, disk, table
        self._per_window = blocks_per_window(disk.block_size, disk.sector_size)

    def window(self, offset: int) -> Window:
        disk = self._disk
        first = offset // disk.block_size // self._per_window * self._per_window
        last = min(first + self._per_window, -(-disk.size // disk.block_size))
        numbers = np.arange(first, last, dtype=np.int64)
        entries = self._table[numbers + numbers // disk.chunk_ratio]
        states = (entries & _STATE).astype(np.uint8)
        kinds = np.full(len(states), ZERO, dtype=np.uint8)
        kinds[states == layout.STATE_NOT_PRESENT] = PARENT
        kinds[states == layout.STATE_FULLY_PRESENT] = PLAIN
        partial = np.flatnonzero(states == layout.STATE_PARTIALLY_PRESENT).astype(np.int64)
        if ((states > layout.STATE_UNMAPPED) & (states < layout.STATE_FULLY_PRESENT)).any():
            raise ImageDamaged(f"{self._host.path}: a block of the VHDX is in a state that does not exist")
        if len(partial) and disk.parent is None:
            raise ImageDamaged(f"{self._host.path}: a block of the VHDX is present in part, but there is no parent")
        rows = [self._bits(first + number) for number in partial.tolist()]
        bits = np.array(rows, dtype=bool).reshape(len(partial), disk.block_size // disk.sector_size)
        blocks = Blocks(kinds, (entries >> np.uint64(20)).astype(np.int64) * MIB, partial, bits)
        start = first * disk.block_size
        return window_of_blocks(start, min(last * disk.block_size, self.size), disk.block_size, blocks, self._host)

    def _bits(self, number: int) -> NDArray[np.bool_]:
        """The sector bitmap of payload block `number`: its part of the chunk's bitmap block, low bits first."""
        disk = self._disk
        chunk, index = divmod(number, disk.chunk_ratio)
        entry = int(self._table[chunk * (disk.chunk_ratio + 1) + disk.chunk_ratio])
        if entry & 7 != layout.STATE_FULLY_PRESENT:
            raise ImageDamaged(f"{self._host.path}: a sector bitmap of the VHDX is missing")
        length = _SECTORS_IN_BITMAP // disk.chunk_ratio // 8
        raw = self._host.read((entry >> 20) * MIB + index * length, length)
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little").astype(bool)
