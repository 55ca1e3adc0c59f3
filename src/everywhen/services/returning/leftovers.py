# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a return has made so far, written down before it is made: a killed one can be taken up, and nothing stays unnamed.

A JSON document for each domain in the state folder, `_returning/<of its host and name>.json`; a lock beside it is held by who
is at it. Gone when the return has ended.

| field | meaning |
|---|---|
| `uri`, `name`, `uuid`, `moment` | which domain, of what |
| `disks` | path (or `POOL/VOLUME`, one that a pool makes) by disk, as far as they were begun |
| `complete` | `[inode, size, mtime in ns]` by disk, of those that are written; devices have `[]` |
| `states` | paths of UEFI variables and TPM that were begun |
| `defined` | whether it was about to be defined |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from everywhen.repository.index.process_lock import try_lock
from everywhen.services.failures import Busy

_FOLDER = "_returning"
"""In the state folder. No VM can be called so."""


@dataclass(slots=True)
class Made:
    """See the table."""

    uri: str
    name: str
    uuid: str
    moment: str
    disks: dict[str, str] = field(default_factory=dict)
    complete: dict[str, list[int]] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    defined: bool = False


class Ledger:
    """The document of one domain."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Made | None:
        """What an earlier return has left. None where there is none, or nothing that can be read."""
        try:
            value: Any = json.loads(self._path.read_text(encoding="utf-8"))
            return Made(**value)
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, made: Made) -> None:
        """Durable when this returns. Raises OSError."""
        partial = self._path.with_suffix(".new")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(made), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def clear(self) -> None:
        """There is nothing left. Raises OSError."""
        with suppress(FileNotFoundError):
            self._path.unlink()


@contextmanager
def ledger_of(state: Path, uri: str, name: str) -> Iterator[Ledger]:
    """The document, for one return at a time. Raises Busy, OSError."""
    folder = state / _FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{sha256(f'{uri} {name}'.encode()).hexdigest()[:32]}.json"
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(descriptor):
            raise Busy(f'Another restore makes the domain "{name}" just now.', on=name, safe="Nothing was written.")
        yield Ledger(path)
    finally:
        os.close(descriptor)


def identity_of(path: str) -> list[int]:
    """By which a finished image is known again, [] for a device. Raises OSError."""
    found = os.stat(path)
    return [found.st_ino, found.st_size, found.st_mtime_ns] if os.path.isfile(path) else []
