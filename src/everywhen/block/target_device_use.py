# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who uses a block device on Linux: mounts, swap, and devices built on it (partitions, LVM, RAID, encryption).

Sources: /proc/self/mountinfo (proc(5)), /proc/swaps, /sys/dev/block/MAJOR:MINOR with `holders/` and partition folders.
Opening with O_EXCL is what really protects (the kernel refuses when any file system or device mapper has claimed the
device or a part of it); this module finds the words for it, and mounts that the claim does not cover.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

_OCTAL = re.compile(r"\\([0-7]{3})")


def uses(rdev: int) -> list[str]:
    """Sentences such as '/dev/sdb1 is mounted on /mnt', about this device and all that is built on it. [] elsewhere."""
    found: list[str] = []
    for number, name in _family(rdev):
        found += [f"{name} is mounted on {where}" for device, where in _mounts() if device == number]
        found += [f"{name} is used as swap" for device in _swaps() if device == number]
    holders = [name for _, name in _family(rdev) if name.startswith(("/dev/mapper/", "/dev/md"))]
    return found or [f"{name} is built on it" for name in holders]


def _family(rdev: int) -> Iterator[tuple[int, str]]:
    """This device, its partitions, and what is built on any of them: device number and name."""
    waiting, seen = [os.path.realpath(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}")], set[str]()
    while waiting:
        folder = waiting.pop()
        number = _line(f"{folder}/dev")
        if folder in seen or not number:
            continue
        seen.add(folder)
        mapper = _line(f"{folder}/dm/name")
        major, _, minor = number.partition(":")
        yield os.makedev(int(major), int(minor)), f"/dev/mapper/{mapper}" if mapper else f"/dev/{_basename(folder)}"
        holders = f"{folder}/holders"
        waiting += [os.path.realpath(f"{holders}/{name}") for name in _names(holders)]
        waiting += [f"{folder}/{name}" for name in _names(folder) if os.path.exists(f"{folder}/{name}/partition")]


def _mounts() -> Iterator[tuple[int, str]]:
    """Device number and mount point. Btrfs shows a number of its own there, so the mounted source is looked at too."""
    for line in _lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, source = left.split(" "), _unescape([*right.split(" "), "", ""][1])
        major, _, minor = fields[2].partition(":")
        yield os.makedev(int(major), int(minor)), _unescape(fields[4])
        number = _device_number(source)
        if number is not None and number != os.makedev(int(major), int(minor)):
            yield number, _unescape(fields[4])


def _swaps() -> Iterator[int]:
    for line in _lines("/proc/swaps")[1:]:
        number = _device_number(_unescape(line.split(" ")[0]))
        if number is not None:
            yield number


def _device_number(path: str) -> int | None:
    """The number of the block device at `path`; None when there is none, such as 'tmpfs'."""
    try:
        kind = os.stat(path) if path.startswith("/") else None
    except OSError:
        return None
    return kind.st_rdev if kind is not None and stat.S_ISBLK(kind.st_mode) else None


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _basename(folder: str) -> str:
    return os.path.basename(folder).replace("!", "/")  # sysfs writes the / of names such as cciss/c0d0 so


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # gone, or not Linux
        return []


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _line(path: str) -> str:
    return (_lines(path) or [""])[0]
