# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who may open a share: a file with one account a line, `name:$argon2id$…`. The login password itself is never in it.

The hash is a PHC string as the Argon2 tools write it. Empty lines and lines that begin with # are left alone. The file is
read again when it has changed: an account that was added or removed is so at once.
Source: RFC 9106 (Argon2id), github.com/P-H-C/phc-string-format.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError

from everywhen.services.failures import NotAllowed, NotFound, WrongUsage

MOST_NAME = 64
_MOST_PASSWORD = 1024
"""Characters; what is longer is refused before any work is done for it."""
_MOST_VERIFIED = 1000
_HASHER = PasswordHasher()


@dataclass(frozen=True, slots=True)
class _Read:
    """The file as it was: how to tell that it has changed, and the hashes by name."""

    identity: tuple[int, int, int]
    hashes: dict[str, str]


class Accounts:
    """The accounts of a file. Safe to use from several threads."""

    def __init__(self, path: str, secret: bytes) -> None:
        """`secret`: 32 random bytes, which nobody else needs to know. Raises NotFound, NotAllowed, WrongUsage."""
        self._path = path
        self._secret = secret
        self._verified: set[bytes] = set()
        self._lock = threading.Lock()
        self._known = _read(path)
        if not self._known.hashes:
            do = [f"everywhen serve account NAME --accounts {path}"]
            raise WrongUsage(f"{path} has no account: nobody could open the share.", on=path, do=do)

    def known(self, name: str, password: str) -> bool:
        """Whether that is the login password of that account, as far as it was found out before: takes no time."""
        return self._digest(self._current().get(name, ""), name, password) in self._verified

    def verify(self, name: str, password: str) -> bool:
        """Whether that is the login password of that account: 64 MiB and some hundredths of a second for each call.

        Raises as the constructor.
        """
        expected = self._current().get(name, "")
        if len(password) > _MOST_PASSWORD:
            return False
        try:
            with self._lock:  # one at a time: it is memory that this takes on purpose
                _HASHER.verify(expected or _nobody(), password)
        except VerificationError:
            return False
        if not expected:
            return False
        with self._lock:
            if len(self._verified) >= _MOST_VERIFIED:
                self._verified.clear()
            self._verified.add(self._digest(expected, name, password))
        return True

    def _current(self) -> dict[str, str]:
        known = self._known
        try:
            unchanged = _identity(self._path) == known.identity
        except OSError:
            unchanged = False
        if not unchanged:
            known = self._known = _read(self._path)
        return known.hashes

    def _digest(self, expected: str, name: str, password: str) -> bytes:
        """What is remembered of a check that succeeded: it says nothing, and no longer holds when the hash is another one."""
        text = f"{expected}\0{name}\0{password}".encode("utf-8", "surrogatepass")
        return blake2b(text, key=self._secret).digest()


@cache
def _nobody() -> str:
    """What is checked where there is no such account, so that the time taken does not say which ones there are."""
    return _HASHER.hash("")


def put_account(path: str, name: str, password: str) -> bool:
    """Add an account to the file, or give it another login password; whether it was there. Where there is no file it is made.

    Raises WrongUsage, NotAllowed, OSError.
    """
    if not _is_name(name):
        raise WrongUsage(
            f'"{name}" is not a name for an account: no colon, no blanks, at most {MOST_NAME} characters.', on=name
        )
    if not password or len(password) > _MOST_PASSWORD:
        raise WrongUsage(f"A login password has 1 to {_MOST_PASSWORD} characters.")
    line = f"{name}:{_HASHER.hash(password)}"
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        lines, mode = [], 0o600
    _parsed(path, lines)  # what cannot be read is not written over
    place = next((number for number, text in enumerate(lines) if text.startswith(f"{name}:")), None)
    changed = [*lines, line] if place is None else [*lines[:place], line, *lines[place + 1 :]]
    descriptor, unfinished = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".accounts-")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(f"{text}\n" for text in changed))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, mode)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
    return place is not None


def _read(path: str) -> _Read:
    """Raises NotFound, NotAllowed, WrongUsage."""
    try:
        identity = _identity(path)
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        writable = os.name != "nt" and os.stat(path).st_mode & stat.S_IWOTH
    except FileNotFoundError as error:
        do = [f"everywhen serve account NAME --accounts {path}"]
        raise NotFound(f"There is no file of accounts {path}.", on=path, do=do) from error
    except OSError as error:
        raise NotAllowed(f"{path}: the file of accounts cannot be read ({error.strerror}).", on=path) from error
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{path} is no file of accounts: it is not text.", on=path) from error
    if writable:
        raise NotAllowed(f"{path} can be written by everybody, who could let anybody in.", on=path, do=[f"chmod 600 {path}"])
    return _Read(identity, _parsed(path, lines))


def _parsed(path: str, lines: list[str]) -> dict[str, str]:
    """Raises WrongUsage."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, expected = line.partition(":")
        try:
            kind = extract_parameters(expected).type
        except InvalidHashError:
            kind = None
        if not _is_name(name) or name in found or kind != Type.ID:
            what = f"{path}: line {number} is no account (a name that is not there yet, a colon, and an Argon2id hash)."
            raise WrongUsage(what, on=path, do=[f"everywhen serve account NAME --accounts {path}"])
        found[name] = expected
    return found


def _identity(path: str) -> tuple[int, int, int]:
    """Raises OSError."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MOST_NAME and name.isprintable() and not name.startswith("#") and not set(name) & set(": ")
