# SPDX-License-Identifier: AGPL-3.0-or-later
"""The descriptor of a VMDK: a text that names the disk's extents, its parent and its kind ("Virtual Disk Format 5.0").

# Disk DescriptorFile
version=1
CID=fffffffe                       content id, changes with the first write after opening
parentCID=ffffffff                 the parent's content id; all ones: no parent
createType="twoGbMaxExtentSparse"
parentFileNameHint="base.vmdk"
RW 4192256 SPARSE "disk-s001.vmdk"          access, sectors, kind, file
RW 4192256 FLAT "disk-f001.vmdk" 0          ... and where in the file the extent begins, in sectors
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, UnsupportedVersion

MAGIC: Final = b"# Disk DescriptorFile"
SPARSE_KINDS: Final = frozenset({"SPARSE", "VMFSSPARSE", "SESPARSE"})
FLAT_KINDS: Final = frozenset({"FLAT", "VMFS"})
ZERO_KIND: Final = "ZERO"
_NO_PARENT: Final = "ffffffff"
_MOST_EXTENTS: Final = 512
_EXTENT: Final = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d{1,15})\s+([A-Z0-9]+)(?:\s+"([^"]*)")?(?:\s+(\d{1,15}))?')
_SETTING: Final = re.compile(r'([^=\s"]+)\s*=\s*"?(.*?)"?')


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One extent: its length and where it begins in the file, in sectors."""

    sectors: int
    kind: str
    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """`parent_cid` is None when there is no parent."""

    cid: str
    parent_cid: str | None
    parent_hint: str
    extents: tuple[ExtentLine, ...]


def parse_descriptor(raw: bytes) -> Descriptor:
    """The descriptor's text up to the first zero byte."""
    text = _decode(raw.partition(b"\0")[0])
    if not text.lstrip().startswith(MAGIC.decode()):
        raise BadMagic("this is not a VMDK descriptor")
    settings: dict[str, str] = {}
    extents: list[ExtentLine] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#") or not line:
            continue
        if found := _EXTENT.fullmatch(line):
            extents.append(ExtentLine(int(found[2]), found[3], found[4] or "", int(found[5] or 0)))
        elif found := _SETTING.fullmatch(line):
            settings[found[1].lower()] = found[2]
        else:
            raise Corrupt(f"the VMDK descriptor has a line that is not understood: {line[:60]!r}")
    if not extents or len(extents) > _MOST_EXTENTS:
        raise Corrupt(f"the VMDK descriptor has {len(extents)} extents")
    if "encryption.keysafe" in settings:
        raise UnsupportedVersion("the VMDK is encrypted")
    parent = settings.get("parentcid", _NO_PARENT).lower()
    return Descriptor(
        cid=settings.get("cid", "").lower(),
        parent_cid=None if parent == _NO_PARENT else parent,
        parent_hint=settings.get("parentfilenamehint", ""),
        extents=tuple(extents),
    )


def _decode(raw: bytes) -> str:
    """UTF-8, or what older Windows hosts wrote."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")
