# SPDX-License-Identifier: AGPL-3.0-or-later
"""A sink and a watchdog with nothing around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everywhen.capture.reception import Reception
from tests.spools import sink_order


@contextmanager
def reception(folder: Path, sizes: list[int]) -> Iterator[Reception]:
    """For disks of so many bytes, with its spool in `folder`."""
    (folder / "spool").mkdir(parents=True)
    with Reception(folder / "sink", sink_order(folder / "spool", sizes)) as running:
        yield running
