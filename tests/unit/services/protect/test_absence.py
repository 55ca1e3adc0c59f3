# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM that is off: what somebody writes to its images is noticed, also between its end and its last recovery point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from everywhen.capture.hypervisor import Hypervisor
from everywhen.capture.qmp import MonitorError
from everywhen.capture.stored_disk import StoredDisk
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.repository import Repository
from everywhen.services.protect.absence import Absence, images_seen
from everywhen.services.protect.capture_order import CaptureOrder, Time
from everywhen.services.protect.capturing import Capture
from everywhen.services.protect.local_recipient import LocalRecipient
from everywhen.services.protect.wishes import Wish
from everywhen.storage.memory import MemoryStore
from tests.deaf import Deaf
from tests.laboratory import World
from tests.spools import VM, spooled

SIZE = 1 << 20


@dataclass
class Off(Deaf):
    """A VM that is off, whoever waits for it, and whoever is told; so many waits until the end is wanted."""

    images_of: dict[str, StoredDisk]
    waits: int = 3
    now: float = 0.0
    made: list[RecoveryPoint] = field(default_factory=list)
    end_wish: None = None

    def is_off(self) -> bool:
        return True

    def images(self) -> dict[str, StoredDisk]:
        return self.images_of

    def definition(self) -> dict[str, bytes]:
        return {}

    @property
    def ending(self) -> bool:
        return self.waits <= 0

    def wait(self, seconds: float) -> Wish | None:
        self.now += seconds
        if seconds:
            self.waits -= 1
        return None

    def sealed(self, point: RecoveryPoint, _: int) -> None:
        self.made.append(point)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as opened:
        yield opened


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    path.write_bytes(bytes([1]) * SIZE)
    return path


@pytest.fixture
def vm(image: Path) -> Off:
    return Off({"vda": StoredDisk(str(image), "raw")})


@pytest.fixture
def order(vm: Off, tmp_path: Path) -> CaptureOrder:
    (tmp_path / "web1" / "spool").mkdir(parents=True)
    return CaptureOrder(cast("Hypervisor", vm), tmp_path / "web1", 1 << 30, 0, 300.0)


def sat_out(repository: Repository, order: CaptureOrder, vm: Off, seen: tuple[object, ...]) -> RecoveryPoint | None:
    """The point that shows all, after a while."""
    complete = spooled(repository, order.spool)
    time = Time(lambda: vm.now, lambda _: None)
    absence = Absence(LocalRecipient(repository), "web1", order, vm, time, vm, seen, complete)
    absence.sit_out("it is off")
    return absence.complete


def test_images_that_nobody_wrote_to_are_not_read(repository: Repository, order: CaptureOrder, vm: Off) -> None:
    assert sat_out(repository, order, vm, images_seen(order)) is not None
    assert vm.made == []


def test_what_was_written_since_the_vm_ended_is_read(repository: Repository, order: CaptureOrder, vm: Off, image: Path) -> None:
    seen = images_seen(order)
    image.write_bytes(bytes([2]) * 2 * SIZE)
    found = sat_out(repository, order, vm, seen)
    assert [found] == vm.made
    assert vm.made[0].disks["vda"].tree.size == 2 * SIZE


@pytest.mark.parametrize("in_order", [True, False])
def test_images_are_looked_at_before_the_last_point_is_made(
    repository: Repository,
    order: CaptureOrder,
    vm: Off,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    in_order: bool,
) -> None:
    """That may take minutes: what is written to them meanwhile is none of the VM's."""
    time = Time(lambda: vm.now, lambda _: None)
    capture = Capture(LocalRecipient(repository), order, vm, time, vm)
    before = images_seen(order)

    def ended() -> None:
        capture.stood = True
        capture._in_order = in_order
        raise MonitorError("QEMU hung up")

    monkeypatch.setattr(capture, "_run", ended)
    monkeypatch.setattr(capture, "_last_words", lambda: image.write_bytes(bytes([3]) * 3 * SIZE))
    with pytest.raises(MonitorError):
        capture.run(VM, None, {}, None)
    assert (capture.complete, capture.images) == ((True, before) if in_order else (False, ()))
