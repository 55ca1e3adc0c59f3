# SPDX-License-Identifier: AGPL-3.0-or-later
"""Descriptors as VMware, VirtualBox and QEMU write them, and what is refused."""

from __future__ import annotations

import pytest

from everywhen.formats.errors import BadMagic, Corrupt, UnsupportedVersion
from everywhen.formats.images.vmdk_descriptor import ExtentLine, parse_descriptor

TEXT = b"""# Disk DescriptorFile
version=1
encoding="windows-1252"
CID=AB12cd34
parentCID=00000001
isNativeSnapshot="no"
createType="twoGbMaxExtentSparse"
parentFileNameHint="C:\\VMs\\base disk.vmdk"

# Extent description
RW 4192256 SPARSE "disk-s001.vmdk"
RDONLY 100 FLAT "flat = odd.vmdk" 63
NOACCESS 7 ZERO

# The Disk Data Base
#DDB
ddb.adapterType = "lsilogic"
ddb.longContentID = ""
ddb.uuid.image="c8f0"
"""


def test_all_parts() -> None:
    found = parse_descriptor(TEXT.replace(b"\n", b"\r\n") + b"\0\0garbage")
    assert (found.cid, found.parent_cid) == ("ab12cd34", "00000001")
    assert found.parent_hint == "C:\\VMs\\base disk.vmdk"
    assert found.extents == (
        ExtentLine(4192256, "SPARSE", "disk-s001.vmdk", 0),
        ExtentLine(100, "FLAT", "flat = odd.vmdk", 63),
        ExtentLine(7, "ZERO", "", 0),
    )


def test_no_parent() -> None:
    assert parse_descriptor(TEXT.replace(b"00000001", b"FFFFFFFF")).parent_cid is None


def test_names_in_windows_encoding() -> None:
    found = parse_descriptor(TEXT.replace(b"disk-s001", b"Gr\xf6\xdfe"))
    assert found.extents[0].file == "Größe.vmdk"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"RW 4192256", b"RX 4192256"),  # an extent that is lost silently would shift all behind it
        (b"RW 4192256", b"RW -1"),
        (b"RW 4192256", b"RW 9999999999999999999"),
        (b'SPARSE "disk', b"SPARSE disk"),
    ],
)
def test_lines_that_are_not_understood(old: bytes, new: bytes) -> None:
    with pytest.raises(Corrupt, match="not understood"):
        parse_descriptor(TEXT.replace(old, new))


def test_refusals() -> None:
    with pytest.raises(BadMagic):
        parse_descriptor(b"version=1\n")
    with pytest.raises(Corrupt, match="0 extents"):
        parse_descriptor(b"# Disk DescriptorFile\n")
    with pytest.raises(Corrupt, match="600 extents"):
        parse_descriptor(b"# Disk DescriptorFile\n" + b"RW 1 ZERO\n" * 600)
    with pytest.raises(UnsupportedVersion, match="encrypted"):
        parse_descriptor(TEXT + b'encryption.keySafe = "vmware:key/list"\n')
