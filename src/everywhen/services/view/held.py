# SPDX-License-Identifier: AGPL-3.0-or-later
"""Moments that are open under the names of their folders, with their disks as image files; let go of when nobody uses them.

A program that reads a file opens and closes it many times, and asks for its length more often. So a moment stays open for a
while after the last use. One that looks into hundreds of folders in that time must not have hundreds of them open: of those
that are not in use only the last few stay.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from everywhen.block.disk_file import DiskFile, disk_file, identity_of
from everywhen.formats.layouts.layout import LayoutError
from everywhen.formats.layouts.runs import Runs
from everywhen.services.addresses import Address
from everywhen.services.view.guest_folder import Say
from everywhen.services.view.guest_folders import GuestFolders, Shared
from everywhen.services.view.moments import MomentView, OpenMoments
from everywhen.storage.base import StorageError

UNUSED_S = 60.0
"""A moment that nobody uses stays open for so many seconds."""
MOST_UNUSED = 8
"""So many of those that nobody uses stay open at most. One of a disk with a million stretches of data takes 16 MB."""


@dataclass(frozen=True, slots=True)
class FileSize:
    """`length` of an image file, and how much of it is `stored`, the rest being holes; in bytes."""

    length: int
    stored: int


class HeldMoment:
    """An opened moment, and what was found out about its image files. Safe to use from several threads."""

    def __init__(self, view: MomentView, address: Address, guest: GuestFolders, where: str) -> None:
        """`where` it is shown, for people; `guest`: the guest's files in it."""
        self.view = view
        self.address = address
        self.guest = guest
        self.where = where
        self.users = 0
        self.unused_since = 0.0
        self._lock = threading.Lock()
        self._allocated: dict[str, Runs] = {}
        self._sizes: dict[tuple[str, str], FileSize | None] = {}

    @property
    def time_ns(self) -> int:
        """When it was, in ns since 1970 UTC."""
        return self.view.moment.found.moment.time_ns

    def fits(self, disk: str, image_format: str) -> bool:
        """Whether there is that file: for who lists a folder, and need not wait for the block map. Raises as `file`."""
        size = self.view.disks[disk].size
        if self._laid_out(disk, Runs.whole(size), image_format) is not None:
            return True  # whatever of it is used
        # A VMDK file of a disk beyond 2 TiB alone depends on that.
        return self._laid_out(disk, Runs.whole(0), image_format) is not None and self.size(disk, image_format) is not None

    def file(self, disk: str, image_format: str) -> DiskFile | None:
        """A disk as an image file; None where it does not fit into that format. Raises Damaged, StorageError."""
        with self._lock:  # the first one computes it for all
            if disk not in self._allocated:
                self._allocated[disk] = self.view.disks[disk].allocated()
        return self._laid_out(disk, self._allocated[disk], image_format)

    def _laid_out(self, disk: str, allocated: Runs, image_format: str) -> DiskFile | None:
        identity = identity_of(self.view.moment.label, self.time_ns, disk, image_format)
        try:
            return disk_file(self.view.disks[disk], allocated, image_format, identity)
        except LayoutError:
            return None

    def size(self, disk: str, image_format: str) -> FileSize | None:
        """The size of that file; None where there is none. Only sizes are kept, not layouts. Raises as `file`."""
        key = disk, image_format
        if key not in self._sizes:
            file = self.file(disk, image_format)
            self._sizes[key] = None if file is None else FileSize(file.size, file.layout.stored)
        return self._sizes[key]


class HeldMoments:
    """By VM and name of the folder. Safe to use from several threads."""

    def __init__(self, moments: OpenMoments, monotonic: Callable[[], float], say: Say) -> None:
        """`moments` should not keep open by itself what nobody uses (`linger_s` 0). `say`: told, a line each, what whoever
        started this should know.
        """
        self._moments = moments
        self._say = say
        self._shared = Shared()
        self._warned = False
        self._monotonic = monotonic
        self._held: OrderedDict[tuple[str, str], HeldMoment] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, vm: str, name: str, address: Callable[[], Address]) -> HeldMoment:
        """The moment of that name, which it keeps as long as it is open; else the one that `address` gives.

        Each call needs one `give_back`. Raises NotFound, WrongUsage, Damaged, StorageError.
        """
        with self._lock:
            found = self._held.get((vm, name))
            if found is not None:
                found.users += 1
                self._held.move_to_end((vm, name))
                return found
        with suppress(StorageError):  # of a lease that ends by itself then; who opens something else is not to fail by it
            self.tidy()
        meant = address()
        new = self._opened(meant, f"{vm}/{name}")
        with self._lock:
            found = self._held.setdefault((vm, name), new)
            found.users += 1
            self._held.move_to_end((vm, name))
        if found is not new:  # another thread was faster
            self._moments.release(meant)
        elif not new.view.leased and not self._warned:
            self._warned = True
            self._say("the repository cannot be written: nothing there says that its moments are being read")
        return found

    def _opened(self, meant: Address, where: str) -> HeldMoment:
        view = self._moments.open(meant)
        time_ns = view.moment.found.moment.time_ns
        return HeldMoment(view, meant, GuestFolders(view.disks, self._shared, self._say, where=where, time_ns=time_ns), where)

    def give_back(self, held: HeldMoment) -> None:
        """One user less."""
        with self._lock:
            held.users -= 1
            held.unused_since = self._monotonic()

    @contextmanager
    def using(self, vm: str, name: str, address: Callable[[], Address]) -> Iterator[HeldMoment]:
        """`take` and `give_back` around a body."""
        held = self.take(vm, name, address)
        try:
            yield held
        finally:
            self.give_back(held)

    def is_open(self, vm: str, name: str) -> HeldMoment | None:
        """The moment of that name, if it is open just now; to be looked at, not to be read."""
        with self._lock:
            return self._held.get((vm, name))

    def tidy(self) -> None:
        """Let go of what was not used for a while, and of what is too much. Raises StorageError (a lease's end)."""
        now = self._monotonic()
        with self._lock:
            unused = [key for key, held in self._held.items() if not held.users]  # the one used longest ago comes first
            too_many = len(unused) - MOST_UNUSED
            ended = [
                self._held.pop(key)
                for place, key in enumerate(unused)
                if place < too_many or now - self._held[key].unused_since >= UNUSED_S
            ]
        for held in ended:
            held.guest.close()
            self._moments.release(held.address)
        if ended:
            self._moments.tidy()

    def close(self) -> None:
        """End what reads guests' files, for good. The moments are let go of by whoever opened `moments`."""
        with self._lock:
            every = list(self._held.values())
        for held in every:
            held.guest.end()
