# SPDX-License-Identifier: AGPL-3.0-or-later
"""Deltas whose base is gone, left behind in packs that were not worth rewriting.

A chunk that has a full copy and a delta is needed by its full copy only, so gc may delete the delta's base. When later
the full copy's pack is condemned, marking prefers the delta, which lies in a pack that stays: but it cannot be decoded.
Then the only good copy would be deleted. So before anything is deleted such deltas are set aside, and marking is repeated.
"""

from __future__ import annotations

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import pack_object
from everywhen.repository.gc.marks import Marks
from everywhen.repository.index.index import Copy
from everywhen.repository.repository import Repository
from everywhen.storage.base import ObjectNotFound


def set_aside_stale(repository: Repository, marks: Marks) -> bool:
    """Let this process forget unusable deltas of chunks that have a better copy; whether there were any."""
    found = False
    for row in marks.broken.names:
        copies = repository.index.all_copies(row.tobytes())
        bad = [copy for copy in copies if not _is_whole(repository, copy)]
        if bad and len(bad) < len(copies):
            for copy in bad:
                repository.index.exclude_copies(copy.pack, [copy.offset])
            found = True
    return found


def _is_whole(repository: Repository, copy: Copy) -> bool:
    """Whether the copy can be decoded as far as the index tells: it is full, or its bases have full copies."""
    if not copy.is_delta:
        return True
    try:
        opened = repository.packs.open(copy.pack)
        record = opened.open_record(repository.store.get_range(pack_object(copy.pack), copy.offset, copy.length))
    except (ObjectNotFound, FormatError):
        return False
    return all(any(not full.is_delta for full in repository.index.all_copies(base)) for base in record.bases)
