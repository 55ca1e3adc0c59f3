# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether there is room for all disks, on each file system and in each pool that they go to, and a place for each."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence

from everywhen.hypervisor.host import Pool
from everywhen.services.failures import NoSpace
from everywhen.services.returning.placing import DiskPlace
from everywhen.services.returning.wishes import Check, failed, warned
from everywhen.services.sizes import size


def room(places: Sequence[DiskPlace], pools: Sequence[Pool]) -> list[Check]:
    """Whether there is room for all that is written, per file system and pool of devices."""
    free = {pool.name: pool.free for pool in pools}
    needed: dict[tuple[str, str], int] = defaultdict(int)
    grown: dict[tuple[str, str], int] = defaultdict(int)
    folders: dict[tuple[str, str], str] = {}
    for place in places:
        if place.there or (place.is_device and not place.volume):
            continue
        folder = os.path.dirname(place.path)
        key = ("pool", place.pool) if place.volume else ("fs", str(os.stat(folder).st_dev))
        folders[key] = f'the pool "{place.pool}"' if place.volume else folder
        needed[key] += place.disk.size if place.volume else place.disk.used
        grown[key] += place.disk.size
    return [
        _room(folders[key], needed[key], grown[key], free.get(key[1], 0) if key[0] == "pool" else _available(folders[key]))
        for key in needed
    ]


def twice(places: Sequence[DiskPlace]) -> list[Check]:
    """Whether two disks would be one file."""
    found = Counter(place.path for place in places)
    ways = "Name another place for one of them: --storage DISK=PATH, or a folder, or a pool"
    return [failed(f"Two disks would be {path}.", ways) for path, count in sorted(found.items()) if count > 1]


def _room(where: str, needed: int, grown: int, free: int) -> Check:
    if needed > free:
        ways = ("Another place: --storage DISK=POOL|PATH", "What is not needed there: remove it, and try again")
        return failed(
            f"There is no room in {where}: {size(needed)} would be written, {size(free)} are free.", *ways, kind=NoSpace
        )
    if grown > free:
        return warned(f"space: {size(needed)} to write, {size(free)} free in {where}; the disks can grow to {size(grown)}")
    return Check(f"space: {size(needed)} to write, {size(free)} free in {where}")


def _available(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
