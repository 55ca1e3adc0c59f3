# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading qcow2, versions 2 and 3: the active state, with backing files, subclusters, compression, external data.

Own code, not dissect.hypervisor (3.21): the tables must be checked and turned into extents here anyway, after which
reading is shared with all formats; dissect trusts every offset, and has no cheap extents. Tests compare with qemu-img.

Not read: encrypted images, images that QEMU marked as corrupt. The dirty bit (lazy refcounts) concerns writers only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged, layout_errors
from everywhen.block.mapping import PACKED, PARENT, PLAIN, ZERO, Kinds, TableLayout, TwoLevelMap, Units, Unpack
from everywhen.block.references import Chain, qemu_name
from everywhen.formats import zstd
from everywhen.formats.errors import Corrupt
from everywhen.formats.images.qcow2 import HEADER_BYTES, Qcow2Header, parse_header

_COPIED: Final = np.uint64(1 << 63)
_COMPRESSED: Final = np.uint64(1 << 62)
_OFFSET: Final = np.uint64(0x00FFFFFFFFFFFE00)
_L1_RESERVED: Final = np.uint64(0x7F000000000001FF)
_L2_RESERVED: Final = np.uint64(0x3F000000000001FE)
_ZERO_FLAG: Final = np.uint64(1)
_SUBCLUSTERS: Final = 32
_ZSTD_WINDOW_LOG: Final = 23  # 8 MiB: four times the largest cluster; a frame that wants more is an attack on our memory
_QEMU_FORMATS: Final = {"vpc": "vhd", "host_device": "raw", "file": "raw"}


def open_qcow2(host: HostFile, chain: Chain) -> Image:
    """Raises ImageError for what cannot be read for certain."""
    with layout_errors(host.path):
        header = parse_header(host.read_up_to(0, HEADER_BYTES))
    tables = _l2_places(host, header)
    hosts, contents = [host], host
    if header.external_data:
        if header.data_file_name is None:
            raise ImageDamaged(f"{host.path} keeps its data in another file and does not name it")
        contents = chain.open_file([qemu_name(chain, header.data_file_name)])
        hosts.append(contents)
    layout = TableLayout(
        places=tables,
        entries=header.l2_entries,
        dtype=np.dtype(">u8"),
        unit=header.cluster_size // (_SUBCLUSTERS if header.extended_l2 else 1),
        decode=_decoder(host.path, header),
        words=2 if header.extended_l2 else 1,
    )
    mapping = TwoLevelMap(host, contents, header.size, layout, _unpacker(host, header))
    parent = None
    if header.backing_name is not None:
        format = header.backing_format  # noqa: A001 - the word users know it by
        parent = chain.open_parent([qemu_name(chain, header.backing_name)], _QEMU_FORMATS.get(format or "", format))
    return Image("qcow2", mapping, hosts, parent)


def _l2_places(host: HostFile, header: Qcow2Header) -> NDArray[np.int64]:
    """Offsets of the L2 tables that the disk's size needs, 0 for none."""
    needed = -(-header.size // (header.l2_entries * header.cluster_size))
    raw = np.frombuffer(host.read(header.l1_offset, needed * 8), dtype=">u8").astype(np.uint64)
    places = (raw & _OFFSET).astype(np.int64)
    present = places[places != 0]
    if (raw & _L1_RESERVED).any() or (present % header.cluster_size).any():
        raise ImageDamaged(f"{host.path}: the L1 table has an impossible entry")
    if len(np.unique(present)) < len(present):
        raise ImageDamaged(f"{host.path}: two entries of the L1 table name the same L2 table")
    return places


def _decoder(path: str, header: Qcow2Header) -> Callable[[NDArray[np.uint64]], Units]:
    return lambda raw: _decode_subclusters(path, header, raw) if header.extended_l2 else _decode(path, header, raw)


def _decode(path: str, header: Qcow2Header, entries: NDArray[np.uint64]) -> Units:
    """L2 entries of 8 bytes."""
    kinds, places, sizes = _cluster_kinds(path, header, entries)
    zero = ((entries & _ZERO_FLAG) != 0) & (kinds != PACKED)
    if header.version < 3 and zero.any():
        raise ImageDamaged(f"{path}: an L2 entry has a flag that its version does not know")
    kinds[zero] = ZERO
    return Units(header.cluster_size, kinds, places, sizes)


def _decode_subclusters(path: str, header: Qcow2Header, raw: NDArray[np.uint64]) -> Units:
    """L2 entries of 16 bytes: the cluster's entry, then a bit per subcluster "allocated" (low half) and "zero"."""
    pairs = raw.reshape(-1, 2)
    entries, bits = pairs[:, 0], pairs[:, 1]
    clusters, places, sizes = _cluster_kinds(path, header, entries)
    columns = np.arange(_SUBCLUSTERS, dtype=np.uint64)
    allocated = ((bits[:, None] >> columns) & np.uint64(1)) != 0
    zero = ((bits[:, None] >> (columns + np.uint64(_SUBCLUSTERS))) & np.uint64(1)) != 0
    packed = clusters == PACKED
    wrong = (allocated & zero) | (allocated & (clusters == PARENT)[:, None])
    if wrong[~packed].any() or (entries[~packed] & _ZERO_FLAG).any():
        raise ImageDamaged(f"{path}: an L2 entry contradicts its subclusters")
    kinds = np.where(allocated, PLAIN, np.where(zero, ZERO, PARENT)).astype(np.uint8)
    kinds[packed] = PACKED
    unit = header.cluster_size // _SUBCLUSTERS
    spread = places[:, None] + np.arange(_SUBCLUSTERS, dtype=np.int64) * unit
    spread[packed] = places[packed, None]  # a compressed cluster is one run, whatever its size in subclusters
    return Units(unit, kinds.reshape(-1), spread.reshape(-1), np.repeat(sizes, _SUBCLUSTERS))


def _cluster_kinds(
    path: str, header: Qcow2Header, entries: NDArray[np.uint64]
) -> tuple[Kinds, NDArray[np.int64], NDArray[np.int64]]:
    """Kinds (flags for zero apart), offsets and packed sizes of clusters."""
    packed = (entries & _COMPRESSED) != 0
    places = (entries & _OFFSET).astype(np.int64)
    allocated = places != 0
    if header.external_data:
        allocated |= (entries & _COPIED) != 0  # byte 0 of the data file is a cluster like any other
    kinds = np.where(packed, PACKED, np.where(allocated, PLAIN, PARENT)).astype(np.uint8)
    plain = ~packed
    if (entries[plain] & _L2_RESERVED).any() or (places[plain] % header.cluster_size).any():
        raise ImageDamaged(f"{path}: an L2 table has an impossible entry")
    sizes = np.zeros(len(entries), dtype=np.int64)
    if packed.any():
        if header.external_data:
            raise ImageDamaged(f"{path}: compressed clusters and an external data file do not go together")
        shift = np.uint64(62 - (header.cluster_bits - 8))
        words = entries[packed]
        places[packed] = (words & ((np.uint64(1) << shift) - np.uint64(1))).astype(np.int64)
        sectors = ((words & (_COMPRESSED - np.uint64(1))) >> shift).astype(np.int64) + 1
        sizes[packed] = sectors * 512 - (places[packed] & 511)
    return kinds, places, sizes


def _unpacker(host: HostFile, header: Qcow2Header) -> Unpack:
    def unpack(place: int, size: int) -> bytes:
        # The size counts whole sectors, the last of which the file need not have.
        packed = host.read_up_to(place, size)
        try:
            if header.zstd:
                cluster = zstd.decompress_up_to(packed, header.cluster_size, _ZSTD_WINDOW_LOG)
            else:
                cluster = zlib.decompressobj(-15).decompress(packed, header.cluster_size)
        except (zlib.error, Corrupt) as error:
            raise ImageDamaged(f"{host.path}: the compressed cluster at byte {place} is damaged: {error}") from error
        if len(cluster) != header.cluster_size:
            raise ImageDamaged(f"{host.path}: the compressed cluster at byte {place} is too short")
        return cluster

    return unpack
