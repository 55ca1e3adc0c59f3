# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which format a disk image has: from its bytes, never from its name. What is nothing else is a raw disk.

Containers that nobody would mean as a raw disk are refused instead of being backed up as one.
"""

from __future__ import annotations

from typing import Final

from everywhen.block.host_file import HostFile
from everywhen.block.image_errors import ImageUnsupported
from everywhen.formats.errors import FormatError
from everywhen.formats.images import qcow2, vdi, vhd, vhdx, vmdk, vmdk_descriptor

_HEAD_BYTES: Final = 4096
_FOREIGN: Final = (
    (0, b"QED\0", "a QED image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "a cloop image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"VMA\0", "a Proxmox backup"),
    (0, b"EVF\x09\x0d\x0a\xff\0", "an EnCase image"),
    (0, b"shdw", "an Apple sparse image"),
)


def detect(host: HostFile) -> str:
    """One of qcow2, vhd, vhdx, vmdk, vdi, raw. Raises ImageUnsupported for other containers that are known by name."""
    head = host.read_up_to(0, _HEAD_BYTES)
    if head.startswith(qcow2.MAGIC):
        return "qcow2"
    if head.startswith(vhdx.MAGIC):
        return "vhdx"
    if head.startswith((vmdk.MAGIC, vmdk.COWD_MAGIC, vmdk.SESPARSE_MAGIC)):
        return "vmdk"
    if head.lstrip().startswith(vmdk_descriptor.MAGIC):
        return "vmdk"
    if head[vdi.SIGNATURE_OFFSET :].startswith(vdi.SIGNATURE):
        return "vdi"
    tail = host.read(max(0, host.size - vhd.FOOTER_BYTES), min(host.size, vhd.FOOTER_BYTES))
    if head.startswith(vhd.COOKIE) or any(_ends_vhd(raw, host.size) for raw in (tail, tail[1:])):
        return "vhd"
    for at, magic, name in _FOREIGN:
        if head[at:].startswith(magic):
            raise ImageUnsupported(f"{host.path} is {name}, which is not supported as a disk")
    if tail.startswith(b"koly"):
        raise ImageUnsupported(f"{host.path} is an Apple disk image, which is not supported")
    return "raw"


def _ends_vhd(raw: bytes, file_size: int) -> bool:
    """Whether a VHD ends in `raw`. A valid footer of a fixed disk of another size is a leftover in a raw one."""
    if not raw.startswith(vhd.COOKIE):
        return False
    try:
        footer = vhd.parse_footer(raw)
    except FormatError:
        return True  # to be refused with the reason
    return footer.disk_type != vhd.FIXED or footer.size + len(raw) == file_size
