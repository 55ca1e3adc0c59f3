# SPDX-License-Identifier: AGPL-3.0-or-later
"""What tests of the whole program begin with; a file that needs another one has its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.program import Program

if TYPE_CHECKING:
    from tests.libvirtd import Libvirtd


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """With an empty repository."""
    return Program(tmp_path).init()


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """A private one. Who asks for it has skipped where libvirt's Python library is not installed."""
    from tests.libvirtd import Libvirtd

    with Libvirtd() as running:
        yield running
