# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files of a moment that say what its VM is: libvirt's XML, UEFI variables, a TPM's state (capture/domain_files.py)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.disk import PointDisk
from everywhen.repository.repository import Repository
from everywhen.services.failures import Failed

_LARGEST = 64 << 20
"""Bytes of such a file, as capture has it: XML has some KB, variables of UEFI have 0.5 MB."""


@dataclass(frozen=True, slots=True)
class Files:
    """Files of a moment: their sizes by name, and how one is read."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


def files_of(repository: Repository, point: RecoveryPoint) -> Files:
    """Those of a point."""

    def read(name: str) -> bytes:
        tree = point.files[name]
        return PointDisk(repository.fetcher, tree).read(0, tree.size)

    return Files({name: tree.size for name, tree in point.files.items()}, read)


def definition_name(names: Collection[str], preferred: Sequence[str]) -> str | None:
    """The file that has it: the first of the preferred ones; or the only XML that a backup was given (`--config`)."""
    others = [name for name in names if name.endswith(".xml")]
    found = [name for name in preferred if name in names] or (others if len(others) == 1 else [])
    return found[0] if found else None


def read_small(files: Files, name: str, *, do: str) -> bytes:
    """The file's content. Raises Failed for one that is too large to be what it is called, and what reading raises."""
    if files.sizes[name] > _LARGEST:
        raise Failed(f"The moment's {name} has {files.sizes[name]:,} bytes, which no such file has.", do=[do])
    return files.read(name)
