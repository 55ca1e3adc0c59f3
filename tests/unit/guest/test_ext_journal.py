# SPDX-License-Identifier: AGPL-3.0-or-later
"""Journals that debugfs wrote, transaction by transaction: what is shown of them, and why one cannot be."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from everywhen.formats.images.crc32c import crc32c
from everywhen.guest.errors import GuestDamaged, GuestError, GuestUnsupported
from everywhen.guest.ext_journal import replay
from everywhen.guest.ext_journal_layout import MAGIC, Incompat, Kind
from tests.ext_journals import FileVolume, by_e2fsck, differences, made, replayed, whole, written

pytestmark = pytest.mark.skipif(
    not shutil.which("debugfs"), reason="debugfs (e2fsprogs) is not installed; it writes the samples"
)

BLOCK = 4096
EXT4 = "-t ext4 -b 4096 -J size=4"
KINDS = {
    "sums of version 3": (EXT4, "jo -c -v 3"),
    "sums of version 2": (EXT4, "jo -c -v 2"),
    "sums of version 2, 32 bits": (f"{EXT4} -O ^64bit", "jo -c -v 2"),
    "sums of version 3, 32 bits": (f"{EXT4} -O ^64bit", "jo -c -v 3"),
    "no sums": (f"{EXT4} -O ^metadata_csum", "jo"),
    "no sums, 32 bits": (f"{EXT4} -O ^metadata_csum,^64bit", "jo"),
    "ext3": ("-t ext3 -b 4096 -J size=4", "jo"),
}


def filled(folder: Path, content: bytes, blocks: int) -> Path:
    """A file of which each block says where it is in it."""
    path = folder / content.decode(errors="replace").strip("\0")[:8]
    path.write_bytes(b"".join((content + number.to_bytes(2, "big")).ljust(BLOCK, b".") for number in range(blocks)))
    return path


def sample(folder: Path, making: str = EXT4, opening: str = "jo -c -v 3") -> Path:
    """Blocks, some of them again, blocks revoked and one of these once more, and a transaction that is not committed."""
    first, second = filled(folder, b"first", 40), filled(folder, b"second", 40)
    escaped = folder / "escaped"
    escaped.write_bytes(MAGIC.to_bytes(4, "big") + b"e" * (BLOCK - 4))
    return written(
        made(folder / "image", *making.split()),
        opening,
        f"jw -b 3000-3019 {first}",
        f"jw -b 3005,3100 {second}",
        "jw -r 3000,3001",
        f"jw -b 3001 {escaped}",
        f"jw -b 3300 -c {first}",
        "jc",
    )


def block(content: bytes, number: int) -> bytes:
    return content[number * BLOCK : (number + 1) * BLOCK]


def log_blocks(image: Path, kind: Kind) -> list[int]:
    """Where in the image blocks of that kind are that the journal has."""
    content, start = image.read_bytes(), MAGIC.to_bytes(4, "big") + kind.to_bytes(4, "big")
    return [at for at in range(0, len(content), BLOCK) if content[at : at + 8] == start]


def altered(image: Path, at: int, content: bytes) -> Path:
    with image.open("r+b") as file:
        file.seek(at)
        file.write(content)
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_is_what_e2fsck_writes(tmp_path: Path, kind: str) -> None:
    image = sample(tmp_path, *KINDS[kind])
    before, ours = image.read_bytes(), replayed(image)
    content = whole(ours)
    assert differences(content, by_e2fsck(image)) == []
    assert (ours.transactions, ours.notes) == (4, ())
    assert block(content, 3000) == block(before, 3000), "revoked"
    assert block(content, 3001) == MAGIC.to_bytes(4, "big") + b"e" * (BLOCK - 4), "revoked, and written again later"
    assert block(content, 3005).startswith(b"second\0\0")
    assert block(content, 3019).startswith(b"first\0\x13")
    assert block(content, 3300) == block(before, 3300), "never committed"
    assert image.read_bytes() == before
    assert replay(FileVolume(content)) is None, "nothing is left to be replayed"


def test_a_transaction_revokes_what_it_writes_itself(tmp_path: Path) -> None:
    image = written(
        made(tmp_path / "image", *f"{EXT4} -O ^metadata_csum,^64bit".split()),
        "jo",
        f"jw -b 3000,3001 {filled(tmp_path, b'first', 2)}",
        "jw -r 3000",
        "jc",
    )
    # debugfs cannot write this: the first commit becomes a revocation of the same transaction, what comes after it the commit.
    commit, (revoke,) = log_blocks(image, Kind.COMMIT)[0], log_blocks(image, Kind.REVOKE)
    assert revoke == commit + BLOCK
    altered(image, commit, struct.pack(">IIIII", MAGIC, Kind.REVOKE, 1, 20, 3000))
    altered(image, revoke, struct.pack(">III", MAGIC, Kind.COMMIT, 1).ljust(BLOCK, b"\0"))
    ours = replayed(image)
    content = whole(ours)
    assert differences(content, by_e2fsck(image)) == []
    assert block(content, 3000) == block(image.read_bytes(), 3000)
    assert block(content, 3001).startswith(b"first\0\1")


def test_any_part_can_be_read_alone(tmp_path: Path) -> None:
    ours = replayed(sample(tmp_path))
    content = whole(ours)
    parts = ((3001 * BLOCK + 1, 2), (3004 * BLOCK + 4000, 200), (3019 * BLOCK + 10, 3 * BLOCK), (0, 1), (1023, 1025))
    for start, length in parts:
        assert ours.volume.read(start, length) == content[start : start + length]
    with pytest.raises(ValueError, match="outside"):
        ours.volume.read(ours.volume.size - 1, 2)
    assert {3001, 3005, 3100} < set(ours.volume.changed)
    assert not {3000, 3300} & set(ours.volume.changed)


def test_what_was_unmounted_has_nothing_to_replay(tmp_path: Path) -> None:
    for making in (EXT4, "-t ext2 -b 1024", "-t ext3"):
        assert replay(FileVolume(made(tmp_path / "image", *making.split()).read_bytes())) is None


def test_opening_does_not_read_what_is_in_the_log(tmp_path: Path) -> None:
    volume = FileVolume(sample(tmp_path).read_bytes())
    assert replay(volume) is not None
    assert volume.bytes_read < 30 * BLOCK


@pytest.mark.parametrize("kind", [Kind.DESCRIPTOR, Kind.COMMIT, Kind.REVOKE])
def test_from_a_damaged_transaction_on_nothing_is_shown_and_that_is_said(tmp_path: Path, kind: Kind) -> None:
    image = sample(tmp_path)
    before = image.read_bytes()
    at = log_blocks(image, kind)[0 if kind == Kind.REVOKE else 1]
    content = whole(replayed(altered(image, at + 60, b"\xff\xfe")))
    number = 3 if kind == Kind.REVOKE else 2
    assert "".join(replayed(image).notes).startswith(f"transaction {number} of the journal is damaged")
    assert block(content, 3000).startswith(b"first\0\0"), "revoked later"
    assert block(content, 3001).startswith(b"first\0\x01"), "written later"
    assert block(content, 3005).startswith(b"second" if number == 3 else b"first\0\x05")
    assert (block(content, 3100) == block(before, 3100)) is (number == 2)


@pytest.mark.parametrize(("transaction", "said"), [(1, True), (2, False)])
def test_a_commit_that_overtook_its_blocks_ends_the_journal(tmp_path: Path, transaction: int, said: bool) -> None:
    blocks = [filled(tmp_path, name, 1) for name in (b"first", b"second")]
    image = written(made(tmp_path / "image", *EXT4.split()), "jo -c -v 3", *(f"jw -b 3000 {path}" for path in blocks), "jc")
    at = log_blocks(image, Kind.SUPER_2)[0]
    first = bytearray(image.read_bytes()[at : at + 1024])
    first[43] |= Incompat.ASYNC_COMMIT
    first[252:256] = bytes(4)
    first[252:256] = struct.pack(">I", crc32c(bytes(first)) ^ 0xFFFFFFFF)
    altered(image, at, bytes(first))
    assert block(whole(replayed(image)), 3000).startswith(b"second")
    altered(image, log_blocks(image, Kind.DESCRIPTOR)[transaction - 1] + BLOCK + 9, b"not yet written")
    ours = replayed(image)
    assert ours.transactions == transaction - 1
    assert bool(ours.notes) is said, "one is damage, the other is how such a journal ends"


def test_a_damaged_copy_of_a_block_is_an_error_for_that_block(tmp_path: Path) -> None:
    image = sample(tmp_path)
    at = next(at for at in range(0, image.stat().st_size, BLOCK) if image.read_bytes()[at : at + 8] == b"first\0\x13.")
    ours = replayed(altered(image, at + 100, b"!"))
    with pytest.raises(GuestDamaged, match="block 3019 "):
        ours.volume.read(3019 * BLOCK + 50, 1)
    assert ours.volume.read(3018 * BLOCK, 5) == b"first"


def test_a_damaged_superblock_of_the_journal_is_an_error(tmp_path: Path) -> None:
    image = sample(tmp_path)
    altered(image, log_blocks(image, Kind.SUPER_2)[0] + 30, b"\1")
    with pytest.raises(GuestDamaged, match="checksum"):
        replayed(image)


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (40, 0x41, "features"),
        (44, 1, "features"),
        (16, (1 << 20) + 1, "too long"),
        (12, 1024, "impossible"),
        (28, 5000, "impossible"),
    ],
)
def test_what_is_unknown_or_impossible_is_an_error_that_says_why(tmp_path: Path, at: int, value: int, why: str) -> None:
    image = sample(tmp_path, f"{EXT4} -O ^metadata_csum", "jo")
    altered(image, log_blocks(image, Kind.SUPER_2)[0] + at, struct.pack(">I", value))
    with pytest.raises(GuestError, match=why):
        replayed(image)


def test_a_journal_on_another_device_is_said_to_be_there(tmp_path: Path) -> None:
    image = altered(sample(tmp_path), 1024 + 208, b"another device's" + bytes(4) + struct.pack("<I", 0x801))
    with pytest.raises(GuestUnsupported, match="another device"):
        replayed(image)


def test_a_block_outside_of_the_file_system_is_an_error(tmp_path: Path) -> None:
    image = sample(tmp_path, f"{EXT4} -O ^metadata_csum,^64bit", "jo")
    altered(image, log_blocks(image, Kind.DESCRIPTOR)[0] + 12, struct.pack(">I", 4096))
    with pytest.raises(GuestDamaged, match="block 4096 of a file system with 4096"):
        replayed(image)


def test_a_volume_of_something_else_is_an_error() -> None:
    for size in (0, 1500, 1 << 20):
        with pytest.raises(GuestDamaged, match="no superblock"):
            replay(FileVolume(bytes(size)))
