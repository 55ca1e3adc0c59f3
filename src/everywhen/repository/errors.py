# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can go wrong with a repository, beyond its store (StorageError) and its bytes (FormatError).

RepositoryError
├── NotARepository
├── NoSuchPoint
├── Fenced           this writer was declared dead; nothing was committed
├── Damaged          a chunk has no readable copy (DamagedChunk), or metadata is wrong
├── Busy             another process does what only one may do
├── LowOnSpace       no room for new points; cleaning still works
├── CacheFull        no room where the caches of this machine lie
├── CacheRefused     this user may not use them
└── ForeignClaim     an object that no capture can have made would be believed
"""


class RepositoryError(Exception):
    """The message says what happened to what."""


class NotARepository(RepositoryError):
    """No superblock here."""


class NoSuchPoint(RepositoryError):
    """The point was never there, or was dropped."""


class Fenced(RepositoryError):
    """A gc run took this writer for dead. What it stored is kept for a day: run it again, nothing is stored twice."""


class Damaged(RepositoryError):
    """Data that should be there is not, or not as it was written."""


class DamagedChunk(Damaged):
    """No copy of the chunk `name` can be read."""

    def __init__(self, name: bytes, why: str) -> None:
        super().__init__(why)
        self.name = name


class Busy(RepositoryError):
    """Another process holds what only one may hold."""


class ForeignClaim(RepositoryError):
    """Among the claims of captures lies something else. The message names the object that is to be removed."""


class LowOnSpace(RepositoryError):
    """Less room than the reserve: points are refused, cleaning goes on."""


class CacheFull(RepositoryError):
    """There is no room for a file of this machine's caches. What they had is unharmed, and so is the repository."""


class CacheRefused(RepositoryError):
    """This user may not read or write a file of this machine's caches."""
