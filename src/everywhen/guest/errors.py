# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be wrong with a guest's file system. Nothing is ever written, so nothing here has changed anything.

GuestError
├── NoSuchPath           nothing has this name; says the nearest folder that exists
├── WrongKind            a folder where a file is needed, or the other way
├── LinkUnusable         links that go round, or lead to another volume
├── GuestDamaged         the file system contradicts itself: nothing of that entry is trusted
├── GuestUnsupported     a file system, feature or encryption that is not read here
└── GuestLimit           it asks for more work or memory than any real one does

A device that cannot be read is a DeviceError as everywhere: it says nothing about the guest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from everywhen.block.device import DeviceError
from everywhen.formats.errors import FormatError, UnsupportedVersion


class GuestError(Exception):
    """Something inside a guest's disk cannot be read. The disk itself can still be used as a device."""


class NoSuchPath(GuestError):
    """Nothing has this name. `nearest` is the longest leading part of the path that exists."""

    def __init__(self, path: str, nearest: str) -> None:
        super().__init__(f"{path}: no such file or folder; what exists of the way to it is {nearest}")
        self.path = path
        self.nearest = nearest


class WrongKind(GuestError):
    """The entry is there, but not of the kind that is needed."""


class LinkUnusable(GuestError):
    """A link cannot be followed: it goes round, or leads where this file system cannot look."""


class GuestDamaged(GuestError):
    """The bytes contradict themselves; what they would give may be wrong, so nothing is given."""


class GuestUnsupported(GuestError):
    """It needs something that is not supported here, or is encrypted."""


class GuestLimit(GuestError):
    """More work or memory than any real file system needs: damaged, or made to do harm."""


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turns whatever a parser raises over bytes of a guest into GuestDamaged, GuestUnsupported or GuestLimit about `what`.

    Wrapped around each question to a file system. Parsers that are not ours raise anything at all over damaged bytes
    (EOFError, KeyError, OverflowError, ZeroDivisionError and more were seen), and ours may have a fault: no list would do.
    """
    try:
        yield
    except (GuestError, DeviceError):
        raise
    except (MemoryError, RecursionError) as error:
        raise GuestLimit(f"{what}: it asks for more memory than any real one does") from error
    except UnsupportedVersion as error:
        raise GuestUnsupported(f"{what}: {error}") from error
    except FormatError as error:
        raise GuestDamaged(f"{what}: {error}") from error
    except NotImplementedError as error:
        raise GuestUnsupported(f"{what}: {error or 'a feature that is not read here'}") from error
    except Exception as error:
        raise GuestDamaged(f"{what}: {type(error).__name__}: {error}".rstrip(": ")) from error
