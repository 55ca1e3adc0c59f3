# SPDX-License-Identifier: AGPL-3.0-or-later
"""Moments that are open: by address, leased while somebody uses them, let go of afterwards.

An address is resolved when the first one opens it. Who opens the same words while it is open gets the same moment, however
much later `-10m` has become: clients open several connections to what they take for one device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import tzinfo

from everywhen.block.device import DeviceError
from everywhen.formats.errors import FormatError
from everywhen.repository.errors import RepositoryError
from everywhen.repository.ledger import Vm
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.opening import OpenedMoment, open_moment
from everywhen.services.view.blocks import Blocks
from everywhen.services.view.disk import MomentDisk
from everywhen.storage.base import StorageError

FAILURES = (RepositoryError, StorageError, FormatError, DeviceError, OSError)
"""What a moment's disks raise when they cannot be read."""

_MOST_UNUSED = 8
"""Of those that nobody uses so many stay open: a client may ask about each of a thousand exports; one takes up to 100 MB."""


@dataclass(frozen=True, slots=True)
class MomentView:
    """A moment that is open: which one, and its disks by name."""

    vm: Vm
    moment: OpenedMoment
    disks: dict[str, MomentDisk]
    leased: bool
    """Whether the repository says that it is being read; not where its medium cannot be written."""


class _Open:
    def __init__(self, view: MomentView, lease: ExitStack) -> None:
        self.view = view
        self.lease = lease
        self.users = 0
        self.unused_since = 0.0


class OpenMoments:
    """The moments of one repository that a process has open. Safe to use from several threads; `close` it."""

    def __init__(
        self,
        repository: Repository,
        what: str,
        *,
        zone: tzinfo,
        monotonic: Callable[[], float],
        linger_s: float,
        before: Callable[[str], None],
    ) -> None:
        """`what` they are opened for is told in the listing of leases; times in addresses are the `zone`'s.

        A moment that nobody uses is let go of after `linger_s` seconds (at the next call of `tidy`). `before`: called with the
        name of a VM before one of its moments is looked for.
        """
        self._repository = repository
        self._what = what
        self._zone = zone
        self._monotonic = monotonic
        self._linger_s = linger_s
        self._before = before
        self._blocks = Blocks(repository.fetcher)
        self._open: dict[str, _Open] = {}
        self._packs_known: set[str] = set()
        """Points that were there when the packs were listed: a listing of some thousand takes a tenth of a second."""
        self._lock = threading.Lock()

    def catalog(self) -> Catalog:
        """What there is to open now. Raises StorageError, FormatError."""
        return read_catalog(self._repository)

    def open(self, address: Address) -> MomentView:
        """The moment that `address` means (its disk and path aside); each call needs one `release`.

        Raises NotFound, WrongUsage, Damaged, StorageError.
        """
        name = _name(address)
        if name not in self._open:
            with suppress(StorageError):  # of another one's lease, which ends by itself then
                self.tidy()
        with self._lock:  # one at a time: another one who asks for the same must find it open
            found = self._open.get(name)
            if found is None:
                found = self._open[name] = self._opened(address)
            if address.disk is not None:
                Catalog.demand_disk(found.view.vm, found.view.moment.point, address)
            found.users += 1
            return found.view

    def release(self, address: Address) -> None:
        """One user less."""
        with self._lock:
            found = self._open[_name(address)]
            found.users -= 1
            found.unused_since = self._monotonic()

    @contextmanager
    def used(self, address: Address) -> Iterator[MomentView]:
        """The moment, while the body runs. Raises as `open`."""
        view = self.open(address)
        try:
            yield view
        finally:
            self.release(address)

    def tidy(self) -> None:
        """Let go of what nobody has used for a while, and of what is too much. Raises StorageError where a lease cannot be
        deleted.
        """
        now = self._monotonic()
        with self._lock:
            unused = sorted((one.unused_since, name) for name, one in self._open.items() if not one.users)
            too_many = len(unused) - _MOST_UNUSED
            leases = [
                self._open.pop(name).lease
                for place, (since, name) in enumerate(unused)
                if place < too_many or now - since >= self._linger_s
            ]
        with ExitStack() as all_of_them:
            for lease in leases:
                all_of_them.push(lease)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock, ExitStack() as all_of_them:
            all_of_them.callback(self._blocks.close)
            for one in self._open.values():
                all_of_them.push(one.lease)
            self._open.clear()

    def _opened(self, address: Address) -> _Open:
        self._before(address.vm)
        now_ns = self._repository.surroundings.clock()
        catalog = self.catalog()
        vm, moment = open_moment(self._repository, catalog, address, now_ns=now_ns, zone=self._zone, exact=False)
        known = moment.point.point in self._packs_known
        lease = opened_points(self._repository, f"{self._what} {vm.name}", [moment.point], packs_known=known)
        with ExitStack() as stack:
            leased = stack.enter_context(lease)
            if not known:
                self._packs_known = {point.point for point in catalog.points}
            used = self._repository.used_ranges
            disks = {
                name: MomentDisk(used, self._blocks, disk.tree, moment.patches.get(name))
                for name, disk in moment.point.disks.items()
            }
            return _Open(MomentView(vm, moment, disks, leased), stack.pop_all())


def _name(address: Address) -> str:
    return str(replace(address, disk=None, when=address.when or "latest", path=None))
