# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading VMDK: monolithic and split sparse, stream-optimised, flat, VMFS sparse, seSparse; with parents.

Own code, not dissect.hypervisor (3.21): it follows names in descriptors anywhere, checks no table, and gives the
parent's bytes for grains that seSparse unmapped; parsing the tables for extents is most of the work anyway.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged, ImageUnsupported, layout_errors
from everywhen.block.mapping import (
    PACKED,
    PARENT,
    PLAIN,
    ZERO,
    FlatMap,
    JoinedMap,
    Mapping,
    TableLayout,
    TwoLevelMap,
    Units,
    Unpack,
)
from everywhen.block.references import Chain, windows_names
from everywhen.formats.images import vmdk as layout
from everywhen.formats.images import vmdk_descriptor
from everywhen.formats.images.vmdk import SECTOR, SeSparseHeader, SparseHeader
from everywhen.formats.images.vmdk_descriptor import Descriptor, ExtentLine

_LONGEST_DESCRIPTOR: Final = 1 << 20
_LONGEST_PACKED_EXCESS: Final = 65536
_NO_DESCRIPTOR: Final = "an extent without its descriptor: if the disk has a parent, it cannot be seen from here"


@dataclass(frozen=True, slots=True)
class _Extent:
    mapping: Mapping
    descriptor: Descriptor | None


def open_vmdk(host: HostFile, chain: Chain) -> Image:
    """A descriptor with its extents, or one sparse extent. Raises ImageError for what cannot be read for certain."""
    if host.read_up_to(0, 512).lstrip().startswith(vmdk_descriptor.MAGIC):
        with layout_errors(host.path):
            descriptor = vmdk_descriptor.parse_descriptor(host.read_up_to(0, _LONGEST_DESCRIPTOR))
        hosts = [host]
        mapping: Mapping = JoinedMap([_open_line(line, host, chain, hosts) for line in descriptor.extents])
        return _with_parent(mapping, hosts, descriptor, chain)
    extent = _open_sparse(host)
    if extent.descriptor is None:
        return Image("vmdk", extent.mapping, [host], remarks=[_NO_DESCRIPTOR])
    if len(extent.descriptor.extents) > 1:
        raise ImageUnsupported(f"{host.path} is one of several extents; name the descriptor instead")
    return _with_parent(extent.mapping, [host], extent.descriptor, chain)


def _with_parent(mapping: Mapping, hosts: list[HostFile], descriptor: Descriptor, chain: Chain) -> Image:
    if descriptor.parent_cid is None:
        return Image("vmdk", mapping, hosts, identity=descriptor.cid)
    hint = descriptor.parent_hint
    parent = chain.open_identified_parent(windows_names(hint, hint), "vmdk", {descriptor.parent_cid})
    return Image("vmdk", mapping, hosts, parent, identity=descriptor.cid)


def _open_line(line: ExtentLine, host: HostFile, chain: Chain, hosts: list[HostFile]) -> Mapping:
    size = line.sectors * SECTOR
    if line.kind == vmdk_descriptor.ZERO_KIND:
        return FlatMap(host, size, kind=ZERO)
    if line.kind not in vmdk_descriptor.FLAT_KINDS | vmdk_descriptor.SPARSE_KINDS:
        raise ImageUnsupported(f"{host.path} has an extent of kind {line.kind}, which is not supported")
    file = chain.open_file([line.file])
    hosts.append(file)
    if line.kind in vmdk_descriptor.FLAT_KINDS:
        return FlatMap(file, size, place=line.offset * SECTOR)
    mapping = _open_sparse(file).mapping
    if mapping.size != size:
        raise ImageDamaged(f"{file.path} has {mapping.size} bytes of disk, {host.path} says {size}")
    return mapping


def _open_sparse(host: HostFile) -> _Extent:
    head = host.read_up_to(0, layout.HEADER_BYTES)
    with layout_errors(host.path):
        if head.startswith(layout.SESPARSE_MAGIC):
            return _Extent(_sesparse_map(host, layout.parse_sesparse(head)), None)
        if head.startswith(layout.COWD_MAGIC):
            return _Extent(_sparse_map(host, layout.parse_cowd(head)), None)
        header = layout.parse_hosted(head)
        descriptor = None
        if header.descriptor_size:
            raw = host.read_up_to(header.descriptor_offset, header.descriptor_size)
            descriptor = vmdk_descriptor.parse_descriptor(raw) if raw.strip(b"\0") else None
        if header.directory_offset is None:
            header = layout.parse_hosted(host.read(max(0, host.size - 1024), min(512, host.size)))
    return _Extent(_sparse_map(host, header), descriptor)


def _sparse_map(host: HostFile, header: SparseHeader) -> Mapping:
    """Hosted sparse and VMFS sparse extents: tables of u32 sectors."""
    if header.directory_offset is None:
        raise ImageDamaged(f"{host.path} has no grain directory")
    directory = np.frombuffer(host.read(header.directory_offset, header.tables * 4), dtype="<u4").astype(np.int64)
    _check_distinct(host, directory)

    def decode(entries: NDArray[np.uint64]) -> Units:
        zero = (entries == layout.GRAIN_ZERO) & header.zero_grains
        kinds = np.where(entries == 0, PARENT, np.where(zero, ZERO, PACKED if header.compressed else PLAIN)).astype(np.uint8)
        if ((entries == layout.GRAIN_ZERO) & ~zero).any():
            raise ImageDamaged(f"{host.path}: a grain table names a place inside the header")
        return Units(header.grain_size, kinds, entries.astype(np.int64) * SECTOR)

    places = directory * SECTOR
    table = TableLayout(places, header.table_entries, np.dtype("<u4"), header.grain_size, decode)
    return TwoLevelMap(host, host, header.size, table, _unpacker(host, header) if header.compressed else None)


def _unpacker(host: HostFile, header: SparseHeader) -> Unpack:
    """Grains behind a marker: u64 first sector of the disk (if there are markers), u32 packed size, zlib stream."""
    before_size = 8 if header.markers else 0

    def unpack(place: int, size: int) -> bytes:  # noqa: ARG001 - the tables do not know the size, the marker does
        length = int.from_bytes(host.read(place + before_size, 4), "little")
        if not 0 < length <= header.grain_size + _LONGEST_PACKED_EXCESS:
            raise ImageDamaged(f"{host.path}: the compressed grain at byte {place} has an impossible size")
        stream = zlib.decompressobj()
        try:
            grain = stream.decompress(host.read(place + before_size + 4, length), header.grain_size + 1)
        except zlib.error as error:
            raise ImageDamaged(f"{host.path}: the compressed grain at byte {place} is damaged: {error}") from error
        if not stream.eof or len(grain) > header.grain_size:
            raise ImageDamaged(f"{host.path}: the compressed grain at byte {place} is damaged")
        return grain

    return unpack


def _sesparse_map(host: HostFile, header: SeSparseHeader) -> Mapping:
    """seSparse extents: u64 entries with a type in the upper four bits."""
    if host.read(header.volatile_offset + 24, 8) != bytes(8):
        raise ImageUnsupported(f"{host.path} has a journal that must be replayed; open and close it on ESXi first")
    raw = np.frombuffer(host.read(header.directory_offset, header.tables * 8), dtype="<u8")
    if ((raw != 0) & (raw >> np.uint64(32) != 0x10000000)).any():
        raise ImageDamaged(f"{host.path}: the grain directory has an impossible entry")
    numbers = (raw & np.uint64(0xFFFFFFFF)).astype(np.int64)
    places = np.where(raw == 0, 0, header.tables_offset + numbers * header.table_entries * 8)
    _check_distinct(host, places)
    table = TableLayout(places, header.table_entries, np.dtype("<u8"), header.grain_size, _sesparse_decoder(host, header))
    return TwoLevelMap(host, host, header.size, table)


def _sesparse_decoder(host: HostFile, header: SeSparseHeader) -> Callable[[NDArray[np.uint64]], Units]:
    """Types: 0 not here, 1 unmapped and 2 zero (both read as zeroes), 3 a grain whose number has its low bits on top."""

    def decode(entries: NDArray[np.uint64]) -> Units:
        types = entries >> np.uint64(60)
        if (types > 3).any() or ((types == 0) & (entries != 0)).any():
            raise ImageDamaged(f"{host.path}: a grain table has an impossible entry")
        low = (entries >> np.uint64(48)) & np.uint64(0xFFF)
        high = (entries & np.uint64(0xFFFFFFFFFFFF)) << np.uint64(12)
        numbers = np.minimum(low | high, np.uint64(1 << 48)).astype(np.int64)
        kinds = np.where(types == 0, PARENT, np.where(types == 3, PLAIN, ZERO)).astype(np.uint8)
        return Units(header.grain_size, kinds, header.grains_offset + numbers * header.grain_size)

    return decode


def _check_distinct(host: HostFile, tables: NDArray[np.int64]) -> None:
    used = tables[tables != 0]
    if len(np.unique(used)) < len(used):
        raise ImageDamaged(f"{host.path}: two entries of the grain directory name the same table")
