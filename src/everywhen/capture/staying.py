# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest that is not migrated while a disk of it is pushed: QEMU refuses to.

At the end of a migration the guest stands still, and QEMU closes all images for writing; the job of a push writes on, and QEMU
ends itself over it (`Assertion !(bs->open_flags & BDRV_O_INACTIVE)`), with a guest that may have arrived or not. No command
forbids a migration. But a node of a format that QEMU does not migrate does: one of an empty VHD, which nothing uses. Its name
is what the administrator reads in the refusal. While a migration goes on QEMU does not take it: then nothing is pushed.
(QEMU, migration/migration.c, migrate_add_blocker; block/vpc.c, vpc_open.)
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from everywhen.capture.nodes import OURS
from everywhen.capture.qmp import Monitor
from everywhen.formats.layouts.layout import SECTOR, Identity
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.layouts.vhd import lay_out_fixed

STAY = f"{OURS}sends-a-disk-just-now"


def stay(monitor: Monitor, folder: Path) -> None:
    """Have QEMU refuse to migrate its guest from now on. `folder`: where QEMU may open files of ours.

    Raises OSError, MonitorError, CommandFailed: when it is being migrated, and always where QEMU runs with -only-migratable.
    """
    layout = lay_out_fixed(SECTOR, Runs.of_extents([]), Identity(UUID(int=0), 0))
    image = folder / "empty.vhd"
    try:
        image.write_bytes(layout.read(0, layout.file_size, lambda _, length: bytes(length)))
        image.chmod(0o644)
        file = {"driver": "file", "filename": str(image), "read-only": True}
        monitor.execute("blockdev-add", {"driver": "vpc", "node-name": STAY, "read-only": True, "file": file})
    finally:
        image.unlink(missing_ok=True)  # QEMU has it open, or it could not even be made


def let_go(monitor: Monitor) -> None:
    """Let it be migrated again. Raises MonitorError, CommandFailed."""
    monitor.execute("blockdev-del", {"node-name": STAY})
