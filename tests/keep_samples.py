# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository with a clock that stands still until it is told to move, and images made of blocks."""

from __future__ import annotations

import os
from pathlib import Path

from everywhen.block.device import BLOCK_SIZE
from everywhen.repository.keys.keys import Mint, create
from everywhen.repository.presence import Holder
from everywhen.repository.repository import Repository, Surroundings
from everywhen.services.ages import SECOND
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.keep.policies import Policies, read_policies
from everywhen.storage.posix import PosixStore

START = 1_795_000_000 * SECOND
"""2026-11-18 09:06:40 UTC"""


class World:
    """One unencrypted repository below `path`, opened; `now` may be set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = START
        self.store = PosixStore(str(path / "repository"))
        self.unlocked = create(self.store, Mint(os.urandom, START), passphrase=None).unlocked
        self.open()

    def open(self) -> None:
        """Open it (again), with the same caches."""
        holder = Holder("kvm1", "", os.getpid(), "ann")
        surroundings = Surroundings(lambda: self.now, os.urandom, holder, self.path / "cache")
        self.repository = Repository(self.store, self.unlocked, surroundings)

    def close(self) -> None:
        self.repository.close()

    def backup(self, vm: str, blocks: list[bytes]) -> str:
        """One point of `vm` with one disk of these blocks (short ones are padded); gives its id."""
        image = self.path / f"{vm}.raw"
        image.write_bytes(b"".join(block.ljust(BLOCK_SIZE, b"\0") for block in blocks))
        order = BackupOrder(vm=vm, images={"vda": str(image)}, state=self.path)
        return back_up(self.repository, read_catalog(self.repository), order, lambda done, total: None).point.point

    def catalog(self) -> Catalog:
        return read_catalog(self.repository)

    def policies(self) -> Policies:
        return read_policies(self.repository.documents, self.catalog().vms)


def noise() -> bytes:
    """A block that neither compresses nor resembles another one."""
    return os.urandom(BLOCK_SIZE)
