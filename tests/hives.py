# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hives of Windows' registry: an empty one, filled by hivex, which has its own idea of the format."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from tests.guest_images import run

_ROOT = "HKEY_LOCAL_MACHINE\\SYSTEM"


def empty_hive() -> bytes:
    """A root without anything in it, and the rights that hivex gives to the keys below it."""
    security = struct.pack("<2sHIIII", b"sk", 0, 136, 136, 1, 20) + bytes(20)
    root = struct.pack("<2sHQIII", b"nk", 0x2C, 0, 0, 0xFFFFFFFF, 0)
    root += struct.pack("<IIIIIII", 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0xFFFFFFFF, 136, 0xFFFFFFFF)
    root += struct.pack("<IIIIIHH", 0, 0, 0, 0, 0, 4, 0) + b"ROOT"
    cells = b"".join(struct.pack("<i", -(len(cell) + 4)) + cell for cell in (root.ljust(100, b"\0"), security))
    cells += struct.pack("<i", 4096 - 32 - len(cells)).ljust(4096 - 32 - len(cells), b"\0")
    bins = b"hbin" + struct.pack("<IIQQI", 0, 4096, 0, 0, 0) + cells
    head = struct.pack("<4sIIQIIIIIII", b"regf", 1, 1, 0, 1, 3, 0, 1, 32, len(bins), 1).ljust(508, b"\0")
    total = 0
    for (word,) in struct.iter_unpack("<I", head):
        total ^= word
    return head + struct.pack("<I", total) + bytes(4096 - 512) + bins


def of_mbr(signature: int, start: int) -> bytes:
    """What Windows writes for a partition of an MBR, by its first byte."""
    return struct.pack("<IQ", signature, start)


def of_gpt(partition: str) -> bytes:
    """What it writes for one of a GPT, by its GUID."""
    return b"DMIO:ID:" + UUID(partition).bytes_le


def system_hive(path: Path, devices: Mapping[str, bytes]) -> Path:
    """A hive SYSTEM with these in its MountedDevices, among other keys and values."""
    path.write_bytes(empty_hive())
    lines = ["Windows Registry Editor Version 5.00", ""]
    for number in range(40):
        lines += [
            f"[{_ROOT}\\ControlSet{number:03}]",
            "",
            f"[{_ROOT}\\ControlSet{number:03}\\Control]",
            '"Name"="a value"',
            f'"Number"=dword:{number:08x}',
            "",
        ]
    lines += [f"[{_ROOT}\\MountedDevices]"]
    for name, value in devices.items():
        escaped = name.replace("\\", "\\\\")
        lines.append(f'"{escaped}"=hex:{",".join(f"{byte:02x}" for byte in value)}')
    script = path.with_suffix(".reg")
    script.write_text("\n".join([*lines, ""]))
    run("hivexregedit", "--merge", "--prefix", _ROOT, path, script)
    return path
