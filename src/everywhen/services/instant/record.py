# SPDX-License-Identifier: AGPL-3.0-or-later
"""An instant recovery that is under way, so that the same command goes on wherever it was killed: `instant.json` in the VM's
folder of this host's state. Written as a whole before each step that it tells of, durable on return.

| field | type | meaning |
|---|---|---|
| asked | text | the moment as the command named it: by it the command knows itself again |
| moment | text | that moment as an address that means the same at any time |
| parent | text | the VM's newest point before: what follows it and is of a stream was written since |
| vm, repository | text | ids, as hex digits |
| uri, uuid, name | text | the domain |
| xml | text | its definition while its disks are here |
| policies | object | by disk, what the definition said of errors, attributes of its driver: put back in the end |
| targets | object | by disk that moves: `path` and `format` of its image to be |
| states | texts | files of UEFI variables and TPM that were made for it |
| suspended | flag | whether its guest stands still because of us, and is to go on |
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from everywhen.block.target_descriptor import sync_folder
from everywhen.repository.index.process_lock import try_lock
from everywhen.services.failures import Busy, Damage

_NAME = "instant.json"
_LOCK = "instant.lock"

Policies = dict[str, dict[str, str]]
"""By disk: attributes and their values."""


@dataclass(frozen=True, slots=True)
class Target:
    """An image that a disk moves to."""

    path: str
    format: str


@dataclass(frozen=True, slots=True)
class Record:
    """See the table."""

    asked: str
    moment: str
    parent: str
    vm: str
    repository: str
    uri: str
    uuid: str
    name: str
    xml: str
    policies: Policies
    targets: dict[str, Target]
    states: tuple[str, ...] = ()
    suspended: bool = False

    @property
    def command(self) -> str:
        """What goes on with it."""
        return f"everywhen boot {shlex.quote(self.asked)} --define {shlex.quote(self.uri)} --production"


class Recorded:
    """The document of one VM; `now` is what it says."""

    def __init__(self, folder: Path, record: Record) -> None:
        self._folder = folder
        self.now = record

    @classmethod
    def begun(cls, folder: Path, record: Record) -> Recorded:
        """A new one. Raises OSError."""
        made = cls(folder, record)
        made._write()
        return made

    @classmethod
    def found(cls, folder: Path) -> Recorded | None:
        """The one that there is. Raises Damage, OSError."""
        path = folder / _NAME
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            targets = {name: Target(**one) for name, one in value.pop("targets").items()}
            return cls(folder, Record(**value | {"targets": targets, "states": tuple(value["states"])}))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Damage(
                f"{path} cannot be read: {error}.",
                on=str(path),
                safe="What the VM wrote is in its spool and in the repository.",
                do=[f"Is the VM off, or on its own storage? Then remove {path}"],
            ) from error

    def suspended(self, *, by_us: bool) -> None:
        """Say whether its guest stands still because of us. Raises OSError."""
        self.now = replace(self.now, suspended=by_us)
        self._write()

    def over(self) -> None:
        """Nothing is to be gone on with any more. Raises OSError."""
        with suppress(FileNotFoundError):
            (self._folder / _NAME).unlink()
        sync_folder(str(self._folder))

    def _write(self) -> None:
        partial = self._folder / f"{_NAME}.new"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(self.now), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._folder / _NAME)
        sync_folder(str(self._folder))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else is at the VM of this folder meanwhile. Raises Busy, OSError."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(descriptor):
            raise Busy(
                f"Another run serves {folder.name} from a backup just now.",
                on=folder.name,
                safe="Nothing was done.",
                do=["everywhen sessions shows it; Ctrl-C there has the guest stand still, and ends it in order"],
            )
        yield
    finally:
        os.close(descriptor)


def left_alone(state: Path) -> list[str]:
    """A sentence for each VM of this host that runs from a backup which nobody serves. Raises OSError."""
    found = []
    for place in sorted(state.glob(f"*/{_NAME}")):
        try:
            with alone(place.parent):
                recorded = Recorded.found(place.parent)
        except Busy:
            continue  # it is being served
        except (Damage, OSError) as error:
            found.append(str(error))
            continue
        if recorded is not None:
            name, command = recorded.now.name, recorded.now.command
            found.append(f"{name} runs from a backup, and stands still, as nobody serves it; go on: {command}")
    return found
