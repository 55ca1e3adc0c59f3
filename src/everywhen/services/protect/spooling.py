# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spool of one capture, read on this host: its records for the sealer, its segments on their way into the repository.

A file of the spool goes when its bytes are a segment of the journal and its records are in a point (docs/capture.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from everywhen.capture.spool_reader import SpoolDamaged, SpoolFile, first_sequence, read_spooled, spool_files
from everywhen.formats.segment import Group, SegmentHeader
from everywhen.repository.journal import Journal
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import open_segment
from everywhen.repository.repository import Repository


class Spool:
    """The files of one stream. Everything raises SpoolDamaged and OSError."""

    def __init__(self, repository: Repository, folder: Path, epoch: int, stream: str, last: int | None = None) -> None:
        """`last`: the number of its last file, where what follows that cannot be used; its end may be torn."""
        self._repository = repository
        self._last = last
        self._folder = folder
        self._epoch = epoch
        self._journal = Journal(repository, stream)
        self._shipped: set[int] | None = None

    def files(self) -> list[SpoolFile]:
        """Its files, in order."""
        mine = (file for file in spool_files(self._folder) if file.epoch == self._epoch)
        return [file for file in mine if self._last is None or file.number <= self._last]

    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.path.stat().st_size for file in self.files())

    def groups(self, since: int) -> Iterator[Group]:
        """The groups that have records from sequence number `since` on."""
        files = self.files()
        begins = [first_sequence(file) for file in files]
        # A file whose successor begins at or before `since` has nothing of it.
        first = max((at for at, begin in enumerate(begins) if begin is not None and begin <= since), default=0)
        for file in files[first:]:
            for group, _ in read_spooled(file, self._opener, last=file == files[-1]):
                if group.sequence + len(group) > since:
                    yield group

    def damage(self) -> tuple[int, str] | None:
        """The number of the last file that can be used, the good part of it, and what is wrong there; None: nothing is.

        Of a disk that fails: a file that cannot be read is not used at all. All of the spool is read."""
        files, expected = self.files(), None
        for file in files:
            try:
                for group, _ in read_spooled(file, self._opener, last=file == files[-1]):
                    if expected is not None and group.sequence != expected:
                        return file.number - 1, f"{file.path}: records {expected} to {group.sequence - 1} before it are missing"
                    expected = group.sequence + len(group)
            except SpoolDamaged as error:
                return file.number, str(error)
            except OSError as error:
                return file.number - 1, f"{file.path}: {error.strerror or error}"
        return None

    def ship(self, since: int, closed: int | None, alive: Callable[[], None]) -> None:
        """Make segments of the files with lower numbers than `closed` (None: all are closed), durable on return.

        Those that end at or before record `since` are of no use to anybody. `alive` is called for each file. Raises LowOnSpace,
        StorageError.
        """
        files = self.files()
        if self._shipped is None:
            self._shipped = set(self._journal.numbers())
        for file, following in zip(files, [*files[1:], None], strict=True):
            if file.number in self._shipped or (closed is not None and file.number >= closed):
                continue
            alive()
            begin = None if following is None else first_sequence(following)
            if begin is None or begin > since:
                self._put(file, torn=closed is None and following is None)
            self._shipped.add(file.number)

    def drop(self, sealed: int) -> None:
        """Remove files that were shipped, and whose records, all before number `sealed`, are in a point."""
        for file, following in pairwise(self.files()):
            begin = first_sequence(following)
            if self._shipped and file.number in self._shipped and begin is not None and begin <= sealed:
                file.path.unlink()

    def discard(self, closed: int) -> None:
        """Remove the files with lower numbers than `closed`, unshipped: all their records came before the first moment."""
        for file in self.files():
            if file.number < closed:
                file.path.unlink()

    def remove(self) -> None:
        """Remove all files: the sink has ended, and what can be of use is shipped and in a point."""
        for file in self.files():
            file.path.unlink()

    def _put(self, file: SpoolFile, *, torn: bool) -> None:
        data = memoryview(file.path.read_bytes())
        if torn:  # of a sink that was killed: what is cut off there was never durable
            end = max((end for _, end in read_spooled(file, self._opener, last=True)), default=0)
            data = data[:end]
        if data:
            self._journal.put(file.number, [data])

    def _opener(self, header: SegmentHeader) -> Cipher:
        keyset = self._repository.unlocked.keyset
        return open_segment(keyset, self._repository.id, header.cipher, header.generation, header.key)
