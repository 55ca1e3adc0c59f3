# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sessions of writers, leases of readers, the lock of gc: objects that say "somebody is at work here" (docs/locking.md).

A session or lease is refreshed by rewriting it. One that was not refreshed for its time is expired; one whose process is
known to be dead on this host is expired at once. Expiry decides only when gc may fence or forget it, never what is safe.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import Json, text, texts, whole
from everywhen.repository.documents import Documents
from everywhen.storage.base import ObjectNotFound, StorageError

SECOND = 1_000_000_000
SESSION_REFRESH, SESSION_EXPIRY = 30 * SECOND, 600 * SECOND
LEASE_REFRESH, LEASE_EXPIRY = 15 * SECOND, 60 * SECOND

Clock = Callable[[], int]
"""Nanoseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Which process of which host; `user` for people who read listings. `pids`: the kernel's word for where `pid` counts (the
    namespace of processes: containers of one host may have its name and boot, and each numbers its own); '': not known."""

    host: str
    boot: str
    pid: int
    user: str
    pids: str = ""

    def to_json(self) -> Json:
        return {"host": self.host, "boot": self.boot, "pid": self.pid, "user": self.user, "pids": self.pids}

    @classmethod
    def from_json(cls, value: Json) -> Holder:
        names = (text(value, "host"), text(value, "boot"), whole(value, "pid"), text(value, "user", ""))
        return cls(*names, text(value, "pids", ""))

    def is_dead(self, here: Holder) -> bool:
        """Whether the process is known to have ended: only ever true for one of this host."""
        if self.host != here.host or not self.boot:
            return False
        if self.boot != here.boot:
            return True
        if not self.pids or self.pids != here.pids:
            return False  # a number of another namespace says nothing about ours, nor does its absence
        if self.pid == here.pid or os.name == "nt":
            # On Windows os.kill(pid, 0) would end the process: there only the time counts.
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@dataclass(frozen=True, slots=True)
class Presence:
    """What a session or lease says. `what`: 'backup', 'restore', …; `points`: whom it is about."""

    name: str
    holder: Holder
    what: str
    points: list[str]
    began_ns: int
    refreshed_ns: int

    def to_json(self) -> Json:
        holder = self.holder.to_json()
        times = {"began_ns": self.began_ns, "refreshed_ns": self.refreshed_ns}
        return {"kind": "presence", "holder": holder, "what": self.what, "points": self.points, **times}

    @classmethod
    def from_json(cls, name: str, value: Json) -> Presence:
        holder = value.get("holder")
        return cls(
            name,
            Holder.from_json(holder if isinstance(holder, dict) else {}),
            text(value, "what"),
            texts(value, "points"),
            whole(value, "began_ns"),
            whole(value, "refreshed_ns"),
        )

    @property
    def where(self) -> str:
        """Who it is, in a sentence about what is at work."""
        if not self.holder.host:
            return "somewhere: who it is cannot be read, so it counts for ten minutes after it was put"
        return f"on {self.holder.host} (pid {self.holder.pid})"

    def expired(self, here: Holder, now_ns: int) -> bool:
        """Whether nobody seems to be there any more."""
        limit = LEASE_EXPIRY if self.name.startswith("leases/") else SESSION_EXPIRY
        return self.holder.is_dead(here) or now_ns - self.refreshed_ns > limit


def list_presences(documents: Documents, prefix: str) -> list[Presence]:
    """All sessions (`sessions/`) or leases (`leases/`), or what is below `lock/`.

    One that cannot be read is of an unknown host, and was refreshed when the store says that it was put: being torn is no sign
    of being dead, but whoever is alive writes it again.
    """
    found = []
    for name, listed in documents.listed(prefix).items():
        try:
            found.append(Presence.from_json(prefix + name, documents.get(prefix + name)))
        except ObjectNotFound:
            continue  # it ended meanwhile
        except FormatError:
            put_ns = listed.modified_ns if listed is not None else 0
            found.append(Presence(prefix + name, Holder("", "", 0, ""), "somebody", [], 0, put_ns))
    return found


class Attendance:
    """Keeps one presence object refreshed from a thread of its own until `end`."""

    def __init__(self, documents: Documents, presence: Presence, clock: Clock) -> None:
        self._documents = documents
        self._presence = presence
        self._clock = clock
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, *, if_absent: bool = False) -> None:
        """Put the object (the promise begins here) and start refreshing it. Raises StorageError, AlreadyExists."""
        self._documents.put(self._presence.name, self._presence.to_json(), if_absent=if_absent)
        self._thread = threading.Thread(target=self._refresh, name=self._presence.name, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop refreshing and delete the object."""
        self.abandon()
        self._documents.delete(self._presence.name)

    def abandon(self) -> None:
        """Stop refreshing, leave the object: gc will find it expired, and keep what was stored for a day."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _refresh(self) -> None:
        session = self._presence.name.startswith("sessions/")
        period = (SESSION_REFRESH if session else LEASE_REFRESH) / SECOND
        while not self._ended.wait(period):
            value = self._presence.to_json() | {"refreshed_ns": self._clock()}
            try:
                self._documents.put(self._presence.name, value)
            except StorageError:
                # A missed refresh costs nothing by itself; if the store stays away, the work itself fails and says so.
                continue
