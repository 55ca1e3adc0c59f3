# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks that boot by themselves, made without root: FAT with syslinux or a script for UEFI, a kernel, and `boot_init.c`.

The kernel is Debian's, that of `guest.py`. With `agent` its guest runs QEMU's own agent.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guest import KERNEL, cpio
from tests.guest_agent import with_agent

_HERE = Path(__file__).parent
_TOOLS = ("syslinux", "mcopy", "mkfs.fat", "gcc", "setpriv", "qemu-system-x86_64")
_MISSING = [tool for tool in _TOOLS if not shutil.which(tool)]
SIZE = 40 << 20
_UEFI = "\\vmlinuz initrd=\\initrd {options}\n"
_SYSLINUX = """DEFAULT linux
LABEL linux
  KERNEL vmlinuz
  INITRD initrd
  APPEND {options}
"""

needs_bootable = pytest.mark.skipif(
    bool(_MISSING) or not (KERNEL / "vmlinuz").exists(),
    reason=f"not installed: {', '.join(_MISSING)}" if _MISSING else "no kernel (scripts/test-guest)",
)


def bootable(folder: Path, end: str, *, agent: bool = False, uefi: bool = False) -> Path:
    """A raw disk whose guest ends as `boot_init.c` says."""
    folder.mkdir(exist_ok=True)
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    # The last sectors are not the file system's: the guest counts there.
    subprocess.run(["mkfs.fat", "-F", "32", "-s", "1", disk, str((SIZE >> 10) - 64)], check=True, capture_output=True)
    options = f"console=ttyS0 quiet nokaslr mitigations=off panic=0 end={end}"
    (folder / "initrd").write_bytes(_initrd(folder, agent=agent))
    if uefi:
        (folder / "startup.nsh").write_text(_UEFI.format(options=options))
        files = [folder / "startup.nsh"]
    else:
        subprocess.run(["syslinux", "--install", disk], check=True, capture_output=True)
        (folder / "syslinux.cfg").write_text(_SYSLINUX.format(options=options))
        files = [folder / "syslinux.cfg"]
    subprocess.run(["mcopy", "-i", disk, KERNEL / "vmlinuz", folder / "initrd", *files, "::"], check=True)
    return disk


def _initrd(folder: Path, *, agent: bool) -> bytes:
    program = folder / "boot_init"
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-static", "-o", program, _HERE / "boot_init.c"], check=True)
    if agent:
        # Archives may follow each other, and what comes later counts: this takes the place of the agent's guest's own program.
        return with_agent(hook=False)(folder).read_bytes() + cpio([("guest_init", 0o100755, program.read_bytes())])
    entries = [("init", 0o100755, program.read_bytes()), ("modules", 0o040755, b"")]
    entries += [(f"modules/{path.name}", 0o100644, path.read_bytes()) for path in sorted((KERNEL / "modules").iterdir())]
    return cpio(entries)
