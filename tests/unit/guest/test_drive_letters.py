# SPDX-License-Identifier: AGPL-3.0-or-later
"""Drive letters in a hive that hivex wrote: those of partitions that are here, and an error for bytes that make no sense."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from everywhen.guest.content import Inline
from everywhen.guest.drive_letters import drive_letters
from everywhen.guest.errors import GuestError, NoSuchPath, parsing
from everywhen.guest.reading import Window
from everywhen.guest.recognition import Role
from everywhen.guest.registry import Hive
from everywhen.guest.volumes import Volume
from tests.guest_images import Bytes, need
from tests.hives import empty_hive, of_gpt, of_mbr, system_hive
from tests.memory_tree import MemoryFileSystem

GUID = "0fc63daf-8483-4772-8e79-3d69d8477de4"
DEVICES = {
    "\\DosDevices\\C:": of_mbr(0x1A2B3C4D, 1 << 20),
    "\\??\\Volume{11111111-AAAA-3333-4444-555555555555}": of_gpt(GUID),
    "\\DosDevices\\q:": of_gpt(GUID),
    "\\DosDevices\\D:": of_mbr(0x1A2B3C4D, 2 << 20),
    "\\DosDevices\\E:": "\\??\\USBSTOR#Disk&Ven_x#123&0#{53f56307-b6bf-11d0-94f2-00a0c91efb8b}".encode("utf-16-le"),
    "\\DosDevices\\F:": b"\1\2\3",
    "#{of another}": b"",
}


def volume(disk: str, name: str, uuid: str, start: int) -> Volume:
    return Volume(name, (disk,), 512, "ntfs", Role.FILES, Window(Bytes(bytes(4 << 20)), start, 512), None, uuid)


HERE = [
    volume("vda", "p1", "1a2b3c4d-01", 1 << 20),
    volume("vda", "p2", "99999999-02", 2 << 20),
    volume("vdb", "p3", GUID, 1 << 20),
    volume("vdc", "vg-lv", "", 0),
]


@pytest.fixture
def hive(tmp_path: Path) -> bytes:
    need("hivexregedit")
    return system_hive(tmp_path / "SYSTEM", DEVICES).read_bytes()


def windows(hive: bytes) -> MemoryFileSystem:
    made = MemoryFileSystem("ntfs", case_sensitive=False)
    made.add("WINDOWS/system32/config/system", content=hive)
    return made


def test_partitions_by_letter(hive: bytes) -> None:
    found = drive_letters(windows(hive), HERE)
    assert found.given == {"C": ("vda", "p1"), "Q": ("vdb", "p3")}
    assert found.names == {"volume{11111111-aaaa-3333-4444-555555555555}": ("vdb", "p3")}
    assert found.whole
    assert dict(Hive(Inline(hive)).values(["mounteddevices"])) == DEVICES
    assert dict(Hive(Inline(hive)).values(["ControlSet039", "Control"]))["Number"] == b"\x27\0\0\0"


def test_a_registry_that_was_being_written_is_said(hive: bytes) -> None:
    changed = bytearray(hive)
    changed[4] ^= 1
    changed[508] ^= 1  # the checksum
    assert not drive_letters(windows(bytes(changed)), HERE).whole


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the head of the registry lies outside"),
        (bytes(8192), "not a hive"),
        (empty_hive()[:400] + b"x" + empty_hive()[401:], "wrong checksum"),
        (empty_hive(), "MountedDevices: no such"),
    ],
)
def test_what_is_no_registry_is_an_error(content: bytes, words: str) -> None:
    with pytest.raises(GuestError, match=words):
        drive_letters(windows(content), HERE)
    with pytest.raises(NoSuchPath):
        drive_letters(MemoryFileSystem("ntfs"), HERE)


def test_damaged_hives_end_in_errors(hive: bytes) -> None:
    """Any of its bytes behind the head, and places that lead round: letters, or a GuestError, and soon."""
    chance = random.Random(1)
    failed = 0
    for _ in range(400):
        changed = bytearray(hive)
        for _ in range(chance.choice((1, 3, 30))):
            at = chance.randrange(4096, len(changed) - 4)
            changed[at : at + 4] = chance.choice((chance.randbytes(4), bytes(4), b"\x20\0\0\0", b"\xff" * 4))
        try:
            drive_letters(windows(bytes(changed)), HERE)
        except GuestError:
            failed += 1
    assert 20 < failed < 400


def test_lists_within_lists_end() -> None:
    """A root with a list of lists that says 65,535 times the same list of 65,535 keys: nobody reads them all."""
    inner = b"lf" + b"\xff\xff" + (32).to_bytes(4, "little") * 2 * 65_535
    outer = b"ri" + b"\xff\xff" + (4096).to_bytes(4, "little") * 65_535
    with pytest.raises(GuestError, match="more keys beside one another than any has"), parsing("the registry"):
        list(Hive(Inline(with_subkeys(inner, outer))).values(["MountedDevices"]))


def test_large_keys_end() -> None:
    """65,535 times the same key, in a cell of a MiB: 64 GiB in all."""
    key = b"nk" + bytes((1 << 20) - 8)
    content = Counted(with_subkeys(key, b"li" + b"\xff\xff" + (4096).to_bytes(4, "little") * 65_535))
    with pytest.raises(GuestError, match="more keys beside one another than any has"), parsing("the registry"):
        list(Hive(content).values(["MountedDevices"]))
    assert content.bytes_read < 70 << 20


class Counted(Inline):
    """A content that counts what is read."""

    bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        self.bytes_read += length
        return super().read(offset, length)


def with_subkeys(inner: bytes, outer: bytes) -> bytes:
    """A hive whose root has `outer` as its list of subkeys, and `inner` at 4096."""
    hive = bytearray(empty_hive() + bytes(4096 * 400))
    place = 4096
    for cell in (inner, outer):
        hive[4096 + place : 4096 + place + 4 + len(cell)] = (-(len(cell) + 4)).to_bytes(4, "little", signed=True) + cell
        place += len(cell) + 4 + (-len(cell) - 4) % 8
    root = 4096 + 32 + 4
    hive[root + 20 : root + 24] = (1).to_bytes(4, "little")
    hive[root + 28 : root + 32] = (4096 + len(inner) + 4 + (-len(inner) - 4) % 8).to_bytes(4, "little")
    hive[40:44] = (len(hive) - 4096).to_bytes(4, "little")
    total = 0
    for at in range(0, 508, 4):
        total ^= int.from_bytes(hive[at : at + 4], "little")
    hive[508:512] = total.to_bytes(4, "little")
    return bytes(hive)
