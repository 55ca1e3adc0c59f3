# SPDX-License-Identifier: AGPL-3.0-or-later
"""The clocks that sinks share lie in the host's memory: what tests leave there is removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")


@contextmanager
def forgotten(folder: Path) -> Iterator[Path]:
    """A state folder whose clock is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        page(folder).unlink(missing_ok=True)


def page(folder: Path) -> Path:
    """The clock of a state folder."""
    note = folder / ".clock"
    return MEMORY / f"everywhen-{note.read_text().strip() if note.exists() else 'none'}"
