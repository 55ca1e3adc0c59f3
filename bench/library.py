# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository opened in this process, for what cannot be done through the command line."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everywhen.interfaces.cli.context import holder
from everywhen.repository.keys.keys import read_superblock, unlock
from everywhen.repository.repository import Repository, Surroundings
from everywhen.storage.base import ObjectStore


@contextmanager
def opened(store: ObjectStore, passphrase: str, cache: Path) -> Iterator[Repository]:
    """The repository, unlocked; closed at the end."""
    unlocked = unlock(store, read_superblock(store), passphrase)
    with Repository(store, unlocked, Surroundings(time.time_ns, secrets.token_bytes, holder(), cache)) as repository:
        yield repository
