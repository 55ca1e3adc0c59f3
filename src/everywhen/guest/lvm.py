# SPDX-License-Identifier: AGPL-3.0-or-later
"""Logical volumes of LVM2, over all disks of a VM: linear, striped and mirrored ones; of others it is said what they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json
from everywhen.formats.filesystems import lvm
from everywhen.guest.errors import GuestDamaged, GuestError, GuestLimit, GuestUnsupported, parsing
from everywhen.guest.reading import piece
from everywhen.guest.tree import Readable

_NAME = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+\-]{0,127}")
_MOST_SEGMENTS = 1 << 16
_MOST_OPENED = 1 << 14
_MOST_TEXT = 16 << 20
_MIRRORED = {"raid1": ("raids", 2, 1), "mirror": ("mirrors", 2, 0)}
"""By type: the list of images, how many items each takes, which of them is its name."""


@dataclass(frozen=True, slots=True)
class Member:
    """A physical volume and where it is: the name of its disk."""

    disk: str
    volume: Readable


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """`vg-lv` (dashes in either doubled, as under /dev/mapper), the disks it lies on, and its content or why there is none.

    `uuid` as the device mapper has it: `LVM-`, the ids of group and volume without their dashes.
    """

    name: str
    disks: tuple[str, ...]
    content: Readable | GuestError
    uuid: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes `start` to `start + length` of a logical volume, striped over `targets` in turns of `stripe` bytes."""

    start: int
    length: int
    stripe: int
    targets: tuple[tuple[Readable, int], ...]


class _Joined:
    """A Readable put together from pieces in order."""

    def __init__(self, pieces: list[_Piece]) -> None:
        self._pieces = pieces
        at = 0
        for one in pieces:
            if one.start != at:
                raise GuestDamaged("its segments do not follow each other")
            at += one.length
        self._size = at

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"{offset} + {length} is outside of {self._size} bytes")
        end = offset + length
        parts: list[bytes] = []
        low, high = 0, len(self._pieces)
        while low < high:
            middle = (low + high) // 2
            if self._pieces[middle].start + self._pieces[middle].length <= offset:
                low = middle + 1
            else:
                high = middle
        for one in self._pieces[low:]:
            if offset >= end:
                break
            stop = min(end, one.start + one.length)
            parts += _striped(one, offset - one.start, stop - one.start)
            offset = stop
        return b"".join(parts)


def _striped(one: _Piece, offset: int, end: int) -> Iterator[bytes]:
    while offset < end:
        row, within = divmod(offset, one.stripe)
        turn, column = divmod(row, len(one.targets))
        length = min(one.stripe - within, end - offset)
        target, base = one.targets[column]
        yield piece(target, base + turn * one.stripe + within, length, "a segment")
        offset += length


def logical_volumes(members: list[Member]) -> tuple[list[LogicalVolume], list[GuestError]]:
    """The visible logical volumes of all groups that have a member here, and what is wrong with members."""
    texts = _Texts()
    by_id: dict[str, Member] = {}
    problems: list[GuestError] = []
    for member in members:
        try:
            with parsing(f"the physical volume of LVM on {member.disk}"):
                head = lvm.decode_label(_beginning(member.volume))
        except GuestError as error:
            problems.append(error)
            continue
        by_id.setdefault(head.identity, member)
        for area in head.metadata:
            try:
                with parsing(f"the metadata of LVM on {member.disk}"):
                    texts.read(member.volume, area)
            except GuestError as error:
                problems.append(error)
    found: list[LogicalVolume] = []
    names: set[str] = set()
    for identity, (_sequence, name, section) in texts.newest.items():
        own = f"{name}.{identity[:6]}" if name in names else name  # a copy of the machine's disk, with another id
        names.add(own)
        try:
            with parsing(f"the volume group {own} of LVM"):
                found += _Group(own, section, by_id).visible()
        except GuestError as error:
            problems.append(error)
    return found, problems


def _beginning(volume: Readable) -> bytes:
    return volume.read(0, min(volume.size, (lvm.LABEL_SECTORS + 1) * lvm.SECTOR))


class _Texts:
    """The metadata of volume groups: of each the newest. Each member has them all, most of them the same."""

    def __init__(self) -> None:
        self.newest: dict[str, tuple[int, str, lvm.Section]] = {}
        """By the group's id: sequence number, name, the group's section."""
        self._seen: set[bytes] = set()
        self._room = _MOST_TEXT

    def read(self, volume: Readable, area: tuple[int, int]) -> None:
        """Takes what one metadata area has. Raises GuestError, FormatError."""
        header = piece(volume, area[0], lvm.MDA_HEADER_BYTES, "a metadata area")
        text = b"".join(piece(volume, start, length, "a metadata area") for start, length in lvm.text_places(header, area))
        summed = hashlib.sha256(text).digest()
        if not text or summed in self._seen:
            return
        self._seen.add(summed)
        self._room -= len(text)
        if self._room < 0:
            raise GuestLimit(f"more than {_MOST_TEXT} bytes of different metadata")
        for name, section in lvm.decode_text(text.decode("utf-8", "replace")).items():
            if isinstance(section, dict) and "extent_size" in section:
                if not _NAME.fullmatch(name):
                    raise Corrupt(f"a volume group called {name!r}")
                identity, sequence = str(section["id"]), int(section["seqno"])
                if sequence > self.newest.get(identity, (-1,))[0]:
                    self.newest[identity] = sequence, name, section


class _Group:
    """One volume group, by its metadata."""

    def __init__(self, name: str, section: lvm.Section, members: Mapping[str, Member]) -> None:
        self._name = name
        self._identity = str(section.get("id", ""))
        self._extent = int(section["extent_size"]) * lvm.SECTOR
        if self._extent <= 0:
            raise Corrupt("extents of no size")
        self._members: dict[str, tuple[Member | None, int]] = {}
        for key, physical in section["physical_volumes"].items():
            member = members.get(str(physical["id"]).replace("-", ""))
            self._members[key] = member, int(physical["pe_start"]) * lvm.SECTOR
        self._opened = 0
        self._volumes: Json = section.get("logical_volumes", {})

    def visible(self) -> Iterator[LogicalVolume]:
        for name, section in self._volumes.items():
            if "VISIBLE" not in section.get("status", ()) or not _NAME.fullmatch(name):
                continue
            disks: set[str] = set()
            content: Readable | GuestError
            try:
                with parsing(f"the logical volume {name}"):
                    content = self._open(name, disks, 0)
            except GuestError as error:
                content = error
            full = f"{self._name.replace('-', '--')}-{name.replace('-', '--')}"
            uuid = f"LVM-{self._identity}{section.get('id', '')}".replace("-", "").replace("LVM", "LVM-", 1)
            yield LogicalVolume(full, tuple(sorted(disks)), content, uuid)

    def _open(self, name: str, disks: set[str], depth: int) -> Readable:
        self._opened += 1
        if self._opened > _MOST_OPENED:
            raise GuestLimit("logical volumes within each other, too many")
        if depth > 4:
            raise Corrupt("logical volumes within each other, too deeply")
        segments = [one for one in self._volumes[name].values() if isinstance(one, dict)]
        if not 0 < len(segments) <= _MOST_SEGMENTS:
            raise Corrupt(f"a logical volume of {len(segments)} segments")
        pieces = [self._piece(one, disks, depth) for one in segments]
        return _Joined(sorted(pieces, key=lambda one: one.start))

    def _piece(self, segment: Json, disks: set[str], depth: int) -> _Piece:
        kind = str(segment["type"]).partition("+")[0]
        start, length = int(segment["start_extent"]) * self._extent, int(segment["extent_count"]) * self._extent
        if length <= 0:
            raise Corrupt("a segment of no length")
        if kind in ("striped", "linear"):
            listed = segment["stripes"]
            count = len(listed) // 2
            stripe = int(segment.get("stripe_size", 0)) * lvm.SECTOR if count > 1 else length
            if not count or stripe <= 0:
                raise Corrupt("a segment without stripes")
            targets = tuple(self._target(listed[2 * i], int(listed[2 * i + 1]), disks, depth) for i in range(count))
            return _Piece(start, length, stripe, targets)
        if kind not in _MIRRORED:
            raise GuestUnsupported(f"a logical volume of the kind {kind!r} of LVM, which is not read here")
        key, step, which = _MIRRORED[kind]
        problem: GuestError | None = None
        for image in segment[key][which::step]:
            try:
                return _Piece(start, length, length, ((self._open(str(image), disks, depth + 1), start),))
            except GuestError as error:
                problem = error
        raise problem or GuestDamaged("a mirror without images")

    def _target(self, key: str, extent: int, disks: set[str], depth: int) -> tuple[Readable, int]:
        if key in self._volumes:
            return self._open(key, disks, depth + 1), extent * self._extent
        if key not in self._members:
            raise Corrupt(f"a segment on {key!r}, which is not there")
        member, begin = self._members[key]
        if member is None:
            raise GuestDamaged(f"its physical volume {key} is on none of the disks here")
        disks.add(member.disk)
        return member.volume, begin + extent * self._extent
