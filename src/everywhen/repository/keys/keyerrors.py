# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can go wrong with the keys of a repository.

RepositoryError
├── WrongPassphrase      no slot opens with this secret
├── UnusablePassphrase   empty, missing, or not text
├── NotEncrypted         a secret was given where none is wanted
├── NoSuchSlot
├── LastSlot             removing it would lock people out
├── AmbiguousSlot        several slots could be meant
├── KeysChanged          somebody else changed the keys meanwhile, or is about to
├── RepositoryExists     `init` where a repository is
└── Damaged
    ├── NoKeySlot        not one key slot can be read
    └── NoSuperblock     what tells how to read a repository cannot be read itself
"""

from __future__ import annotations

from everywhen.repository.errors import Damaged, RepositoryError


class WrongPassphrase(RepositoryError):
    """`tried` slots were tried with this passphrase or recovery key; none opened. Nothing was touched."""

    def __init__(self, message: str, tried: int) -> None:
        super().__init__(message)
        self.tried = tried


class UnusablePassphrase(RepositoryError):
    """A repository passphrase that is empty, missing, or cannot be written as text."""


class NotEncrypted(RepositoryError):
    """The repository has no passphrase, though one was given or is needed for what was asked."""


class NoSuchSlot(RepositoryError):
    """There is no key slot of that id."""


class LastSlot(RepositoryError):
    """Without this slot nobody, or only the holder of the recovery key, could open the repository."""


class AmbiguousSlot(RepositoryError):
    """The operation is about one slot, and several could be meant."""


class KeysChanged(RepositoryError):
    """Somebody else rotated the keys or changed the same passphrase; what was asked has not happened."""


class RepositoryExists(RepositoryError):
    """There is a repository already, and it was not touched."""


class NoKeySlot(Damaged):
    """Every key slot is missing or damaged, and so is its twin."""


class NoSuperblock(Damaged):
    """Both copies of the superblock are damaged."""
