# SPDX-License-Identifier: AGPL-3.0-or-later
"""An empty repository in memory, and the world around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.repository.repository import Repository
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def repository(world: World) -> Iterator[Repository]:
    store = MemoryStore()
    with world.open(store, world.create(store, encrypted=True)) as opened:
        yield opened
