# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far a recovery plan was carried out: so that the same command goes on, with the moments that were chosen at its start.

A JSON document in the state folder, `_returning/plan-<of the file's path and the libvirt>.json`, from before the first byte
until the last VM is up; a lock beside it is held by who is at it.

| field | meaning |
|---|---|
| `moments` | which moment each VM comes back to, as an address, by what the VM is in the plan |
| `made` | `[name, UUID]` of the domains that were begun, by the same; whole is one that libvirt has, without a ledger |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import mapping, parse_json, text, texts
from everywhen.repository.index.process_lock import try_lock
from everywhen.services.failures import Busy

_FOLDER = "_returning"


@dataclass(slots=True)
class PlanRecord:
    """See the table. `path`: of the document."""

    path: Path
    moments: dict[str, str] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)

    def write(self) -> None:
        """Durable when this returns. Raises OSError."""
        partial = self.path.with_suffix(".new")
        with partial.open("w", encoding="utf-8") as file:
            json.dump({key: value for key, value in asdict(self).items() if key != "path"}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def clear(self) -> None:
        """It is carried out. Raises OSError."""
        with suppress(FileNotFoundError):
            self.path.unlink()


@contextmanager
def plan_record(state: Path, plan: Path, uri: str) -> Iterator[PlanRecord]:
    """What was done of the plan in this file, for one at a time. Raises Busy, OSError."""
    folder = state / _FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"plan-{sha256(f'{uri} {plan.resolve()}'.encode()).hexdigest()[:32]}.json"
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(descriptor):
            raise Busy(f"{plan} is carried out just now by another restore.", on=str(plan), safe="Nothing was written.")
        yield _read(path)
    finally:
        os.close(descriptor)


def _read(path: Path) -> PlanRecord:
    try:
        found = parse_json(str(path), path.read_bytes())
        moments, made = mapping(found, "moments"), mapping(found, "made")
        return PlanRecord(path, {key: text(moments, key) for key in moments}, {key: texts(made, key) for key in made})
    except (FileNotFoundError, Corrupt):
        return PlanRecord(path)
