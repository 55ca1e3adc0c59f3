# SPDX-License-Identifier: AGPL-3.0-or-later
"""The folder of this machine's caches, when the operating system does not give what is asked of it there.

Nothing in the repository is touched by that. What can be done without goes on without; the rest says which folder it is,
because its disk is often another one than the repository's, and its owner another user (sudo).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from everywhen.repository.errors import CacheFull, CacheRefused

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def in_caches(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is done in here concerns the caches at `path` only. Raises CacheFull, CacheRefused, other OSErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CacheFull(f"{os.fspath(path)}, a part of the local caches, finds no room: {error.strerror}.") from error
        if error.errno in _REFUSED:
            raise CacheRefused(f"{error.filename or os.fspath(path)}, a part of the local caches: {error.strerror}.") from error
        raise
