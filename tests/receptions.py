# SPDX-License-Identifier: AGPL-3.0-or-later
"""A sink and a watchdog with nothing around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everywhen.capture.reception import Reception
from everywhen.capture.sink_process import SinkOrder
from everywhen.formats.keyslot import Keyset
from everywhen.repository.keys.segment_keys import JournalRecipient


@contextmanager
def reception(folder: Path, sizes: list[int]) -> Iterator[Reception]:
    """For disks of so many bytes, with its spool in `folder`."""
    recipient = JournalRecipient.of(bytes(16), Keyset(b"n" * 32, {}))
    identity = (recipient.repository.hex(), recipient.generation, recipient.public.hex())
    (folder / "spool").mkdir(parents=True)
    order = SinkOrder(sizes, str(folder / "spool"), 1 << 30, "ab" * 16, 1, *identity)
    with Reception(folder / "sink", order) as running:
        yield running
