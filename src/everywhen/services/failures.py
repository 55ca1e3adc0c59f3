# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a user is told when something does not work: what happened to what, what is safe, what to do (ux 4.4).

Failure              exit  code
├── Failed             1   failed            it was tried and did not work
├── WrongUsage         2   wrong_usage       it could not be understood; nothing was tried
├── Damage             3   damaged           stored data is not what was stored
├── Busy               4   busy              somebody else is at it, or holds a lock
├── NotFound           6   not_found         no such repository, VM, moment or path
├── NotAllowed         7   not_allowed       wrong passphrase, no right
├── NoSpace            8   out_of_space
└── Interrupted      130   interrupted       Ctrl-C

`code` and `exit` are a contract with scripts (design section 6): codes are added, never changed. The texts are for
people and may change. Rules for the texts: name the thing as the *user* named it; `what` is a sentence of one line and
can stand alone; `safe` is left empty rather than filled with a comfort that was not checked; each line of `do` is a
command or one sentence. Names from guests and hosts go in as they are: whoever prints a failure makes them harmless.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar

from everywhen.storage.base import AccessDenied, NotAnObject, OutOfSpace, ReadOnly, StorageError, Unavailable


class Exit(IntEnum):
    """Exit codes of the program (design section 6)."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    DAMAGED = 3
    BUSY = 4
    LESS_THAN_ASKED = 5
    NOT_FOUND = 6
    NOT_ALLOWED = 7
    OUT_OF_SPACE = 8
    INTERRUPTED = 130


class Failure(Exception):
    """The root; raise one of its children.

    `what` happened, in one sentence; `on` what (a VM, moment, path, repository: machine readable, may be empty);
    what is `safe`; what to `do`, the best first.
    """

    code: ClassVar[str] = "failed"
    exit: ClassVar[Exit] = Exit.FAILED

    def __init__(self, what: str, *, on: str = "", safe: str = "", do: Iterable[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.on = on
        self.safe = safe
        self.do = list(do)

    def document(self) -> dict[str, Any]:
        """The one JSON document that a command prints instead of its result (ux 4.5)."""
        fields = {"what": self.what, "on": self.on, "safe": self.safe, "do": self.do}
        return {"error": {"code": self.code, "exit": int(self.exit), **fields}}


class Failed(Failure):
    """It was tried and did not work."""


class WrongUsage(Failure):
    """What was asked could not be understood, or means two things; nothing was tried."""

    code = "wrong_usage"
    exit = Exit.WRONG_USAGE


class Damage(Failure):
    """Stored data is not what was stored."""

    code = "damaged"
    exit = Exit.DAMAGED


class Busy(Failure):
    """Somebody else is at it."""

    code = "busy"
    exit = Exit.BUSY


class NotFound(Failure):
    """No such repository, VM, moment or path."""

    code = "not_found"
    exit = Exit.NOT_FOUND


class NotAllowed(Failure):
    """A wrong passphrase, or a right that is missing."""

    code = "not_allowed"
    exit = Exit.NOT_ALLOWED


class NoSpace(Failure):
    """A disk, a store or a quota is full."""

    code = "out_of_space"
    exit = Exit.OUT_OF_SPACE


class Interrupted(Failure):
    """The user stopped it."""

    code = "interrupted"
    exit = Exit.INTERRUPTED


_STORAGE: tuple[tuple[type[StorageError], type[Failure], str], ...] = (
    (OutOfSpace, NoSpace, "What was stored before is unharmed."),
    (AccessDenied, NotAllowed, ""),
    (ReadOnly, NotAllowed, "Nothing was changed."),
    (Unavailable, Failed, ""),
    (NotAnObject, Failed, "It was not followed, and nothing was replaced or deleted."),
)
_ADVICE: dict[type[StorageError], str] = {
    Unavailable: "Try again; the store may be out of reach for the moment.",
    NotAnObject: "Somebody else put it there: take it away, or bring back what was there.",
}
_SYSTEM: dict[int, type[Failure]] = {
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EACCES: NotAllowed,
    errno.EPERM: NotAllowed,
    errno.EROFS: NotAllowed,
    errno.ENOENT: NotFound,
    errno.ENOTDIR: NotFound,
}


def from_storage(error: StorageError, *, url: str) -> Failure:
    """The failure that a store's error is to a user; `url` is how the user named the repository.

    Errors that only the repository can judge (a missing object may be damage, or a moment that is gone) become Failed.
    """
    for kind, failure, safe in _STORAGE:
        if isinstance(error, kind):
            advice = _ADVICE.get(kind) if error.name or kind is not NotAnObject else None  # else the user's path is no folder
            do = [advice] if advice else []
            return failure(f"{url}: {error}", on=url, safe=safe, do=do)
    return Failed(f"{url}: {error}", on=url)


def from_system(error: OSError) -> Failure:
    """The failure that an error of the operating system on a file of the user's is (an image, a restore's target)."""
    name = error.filename
    path = name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name or "")
    text = error.strerror or str(error)
    return _SYSTEM.get(error.errno or 0, Failed)(f"{path}: {text}" if path else text, on=path)
