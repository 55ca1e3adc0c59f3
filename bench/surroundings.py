# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the figures were measured on and with: the machine and the versions. No names of hosts or people."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version as installed_version
from pathlib import Path

from bench.lab import ROOT, Lab
from bench.tools import version

_LIBRARIES = ("blake3", "cryptography", "numpy", "backports.zstd")
_OTHERS = ("mke2fs", "mkfs.xfs", "ntfs-3g", "qemu-storage-daemon", "fio", "nbdkit", "virtnbdbackup")


def machine(work: Path) -> list[tuple[str, str]]:
    """(what, value) lines."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        ("processors", f"{os.cpu_count()} × {_processor()}"),
        ("memory", f"{memory / 2**30:.1f} GiB"),
        ("kernel", f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}"),
        ("file system of the work folder", _file_system(work)),
        ("Python", platform.python_version()),
    ]


def versions(lab: Lab) -> list[tuple[str, str]]:
    """(program, version and settings) lines."""
    ours = lab.tools["everywhen"]
    lines = [("everywhen", f"{str(version(lab.program, ours.env)).removeprefix('everywhen ')}{_commit()}; {ours.settings}")]
    lines.append(("libraries", ", ".join(f"{name} {installed_version(name)}" for name in _LIBRARIES)))
    others = [tool for tool in (*list(lab.tools.values())[1:], lab.borg_fixed(), lab.qemu) if tool is not None]
    lines += [(tool.name, f"{version(tool.program, tool.env)}; {tool.settings}") for tool in others]
    lines += [(name, "not installed") for name in lab.missing]
    lines += [(name, version(name, ours.env) or "not installed") for name in _OTHERS]
    return lines


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(work: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines() if os.path.exists("/proc/mounts") else []:
        _, where, found, *_ = line.split()
        inside = where == "/" or str(work.resolve()) == where or str(work.resolve()).startswith(where + "/")
        if inside and len(where) >= len(best):
            best, kind = where, found
    return kind


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
