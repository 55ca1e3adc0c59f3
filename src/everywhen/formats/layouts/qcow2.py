# SPDX-License-Identifier: AGPL-3.0-or-later
"""qcow2 version 3, without backing file, snapshots or encryption, in 64 KiB clusters.

Source: QEMU, docs/interop/qcow2.txt. All numbers are big-endian.

    cluster          content
    0                header
    1                refcount table: u64 offset of each refcount block
    ...              refcount blocks: u16 for each cluster of the file, all 1
    ...              L1 table: u64 for each 512 MiB of the disk, offset of its L2 table | copied, or 0
    ...              L2 tables, those with entries only: u64 for each cluster of the disk, offset | copied, or 0
    ...              allocated clusters in the disk's order

    header offset    size  field                         value
    0                4     magic                         "QFI" 0xfb
    4                4     version                       3
    8                12    backing file offset, length   0
    20               4     cluster_bits                  16
    24               8     size                          bytes, whole sectors
    32               4     crypt_method                  0
    36               4     l1_size                       entries
    40               8     l1_table_offset
    48               8     refcount_table_offset         65536
    56               4     refcount_table_clusters
    60               12    snapshots: count, offset      0
    72               24    incompatible, compatible, autoclear features: 0
    96               4     refcount_order                4 (16 bits)
    100              4     header_length                 104
    104              8     header extension: end         0

"copied" (bit 63) says that the refcount is exactly 1, so a program may write in place.
"""

from __future__ import annotations

import struct

import numpy as np

from everywhen.formats.layouts.layout import Composer, Identity, Layout, LayoutError
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.layouts.sources import Repeat, Table

CLUSTER = 65536
L2_SPAN = CLUSTER // 8 * CLUSTER
"""Bytes of the disk that one L2 table covers: 512 MiB."""
MAX_SIZE = (32 << 20) // 8 * L2_SPAN
"""QEMU opens no L1 table above 32 MiB (block/qcow2.h, QCOW_MAX_L1_SIZE): 2 PiB."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC = b"QFI\xfb"
_COPIED = 1 << 63


def lay_out(disk_size: int, allocated: Runs, identity: Identity) -> Layout:  # noqa: ARG001 (qcow2 has no identity)
    """A qcow2 file. Raises LayoutError above 2 PiB."""
    if disk_size > MAX_SIZE:
        raise LayoutError(f"qcow2 with clusters of 64 KiB holds at most 2 PiB; this disk has {disk_size} bytes. Use raw.")
    composer = Composer(disk_size, allocated)
    l1_size = -(-disk_size // L2_SPAN)
    l1_clusters = -(-l1_size * 8 // CLUSTER)
    tables = allocated.units(L2_SPAN)
    counted = 1 + l1_clusters + tables.count + allocated.units(CLUSTER).count
    table_clusters, block_clusters = _refcount_clusters(counted)
    blocks_at = CLUSTER * (1 + table_clusters)
    l1_at = blocks_at + CLUSTER * block_clusters
    l2_at = l1_at + CLUSTER * l1_clusters
    disk_at = l2_at + CLUSTER * tables.count
    clusters = counted + table_clusters + block_clusters

    composer.write(0, _header(composer.virtual_size, l1_size, l1_at, table_clusters))
    composer.place(CLUSTER, table_clusters * CLUSTER, Table(Runs.whole(block_clusters), ">u8", blocks_at, CLUSTER))
    composer.place(blocks_at, clusters * 2, Repeat(b"\0\1"))
    composer.place(l1_at, l1_clusters * CLUSTER, Table(tables, ">u8", l2_at, CLUSTER, _COPIED))
    used = composer.place_disk(disk_at, CLUSTER)
    composer.scatter(
        l2_at + tables.before * CLUSTER,
        (tables.ends - tables.starts) * CLUSTER,
        np.asarray(tables.starts * CLUSTER),
        Table(used, ">u8", disk_at, CLUSTER, _COPIED),
    )
    return composer.layout("qcow2", clusters * CLUSTER)


def _refcount_clusters(counted: int) -> tuple[int, int]:
    """Clusters of the refcount table and of the refcount blocks for a file with `counted` other clusters."""
    table = blocks = 0
    while True:
        total = counted + table + blocks
        needed_blocks = -(-total * 2 // CLUSTER)
        needed_table = -(-needed_blocks * 8 // CLUSTER)
        if (needed_table, needed_blocks) == (table, blocks):
            return table, blocks
        table, blocks = needed_table, needed_blocks


def _header(size: int, l1_size: int, l1_at: int, refcount_table_clusters: int) -> bytes:
    values = (_MAGIC, 3, 0, 0, 16, size, 0, l1_size, l1_at, CLUSTER, refcount_table_clusters, 0, 0, 0, 0, 0, 4, 104)
    return _HEADER.pack(*values) + bytes(8)
