# SPDX-License-Identifier: AGPL-3.0-or-later
"""A segment that names blocks beyond its disk's end, as only a hostile host makes one: they are not restored anywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.formats.point import Tree
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services import restore as services_restore
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Damage
from everywhen.services.identities import record
from everywhen.services.opening import open_moment
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.services.restore import RestoreOrder, restore
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import COMPLETE, OPENED, group, put_segment, write

STREAM = "ab" * 16
VM = Vm("f" * 32, "web1", "web1", "", "", 0)
SIZE = 3 * BLOCK_SIZE - 4096
FAR = (1 << 62) - BLOCK_SIZE


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """A point, and after it a write within the disk, one over its end, and two beyond it."""
    world, store = World(tmp_path), MemoryStore()
    begun = group(0, *OPENED, *COMPLETE)
    with world.open(store, world.create(store, encrypted=False)) as opened:
        record(opened, VM)
        with write_point(opened, "test", first_copy=True) as writer:
            disks = [SealedDisk("vda", SIZE, Tree(SIZE, None)), SealedDisk("vdb", BLOCK_SIZE, Tree(BLOCK_SIZE, None))]
            sealer = Sealer(opened, writer, disks, Replay([Patches(), Patches()], 0, following=False))
            sealer.feed(begun)
            sealer.commit(None, Origin(VM.vm, 1, STREAM, {}), 0)
        beyond = [write(0, at, b"beyond") for at in (SIZE - 3, 4 * BLOCK_SIZE, FAR)]
        put_segment(opened, STREAM, 0, begun, group(4, write(0, 5, b"within"), *beyond))
        yield opened


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vhdx"])
@pytest.mark.parametrize("place", [b"within", b"bey", b""], ids=["data", "last", "hole"])
def test_what_was_written_otherwise_is_found_when_it_is_read_back(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str, place: bytes
) -> None:
    """With `--verify`: a medium that keeps something else, and one that has something where nothing was written."""
    vm, opened = open_moment(
        repository, read_catalog(repository), parse_address("web1/vda@latest"), now_ns=1 << 61, zone=UTC, exact=False
    )
    image = tmp_path / f"image.{image_format}"
    order = RestoreOrder(vm, opened, ["vda"], str(image), image_format, "new", -1, files=False, state=tmp_path, verify=True)

    def fails(path: str) -> None:
        content = Path(path).read_bytes()
        if place:
            Path(path).write_bytes(content.replace(place, bytes(len(place))))
        else:
            subprocess.run(["qemu-io", "-f", image_format, "-c", f"write -P 7 {BLOCK_SIZE} 512", path], check=True)

    monkeypatch.setattr(services_restore, "let_go", fails)
    with pytest.raises(Damage, match="does not read back as it was written: bytes"):
        restore(repository, order, lambda *_: None)
    assert image.exists()


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vhdx"])
def test_what_lies_beyond_the_disk_is_left_out(repository: Repository, tmp_path: Path, image_format: str) -> None:
    address = parse_address("web1/vda@latest")
    vm, opened = open_moment(repository, read_catalog(repository), address, now_ns=1 << 61, zone=UTC, exact=False)
    assert opened.found.writes_after == 4
    image = tmp_path / f"image.{image_format}"
    order = RestoreOrder(vm, opened, ["vda"], str(image), image_format, "new", -1, files=False, state=tmp_path)
    told: list[tuple[int, int | None]] = []
    restore(repository, order, lambda done, total: told.append((done, total)))
    assert told[0] == (0, 2 * BLOCK_SIZE - 4096), "the last block is a part of one"
    back = tmp_path / "back.raw"
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", image, back], check=True)
    expected = (bytes(5) + b"within").ljust(SIZE - 3, b"\0") + b"bey"
    assert back.read_bytes().ljust(SIZE, b"\0")[:SIZE] == expected
