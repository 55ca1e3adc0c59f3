# SPDX-License-Identifier: AGPL-3.0-or-later
"""libvirt's library is an extra: most hosts of repositories have none, and what talks to it is imported where it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from everywhen.services.failures import Failed


@contextmanager
def needing_libvirt(on: str) -> Iterator[None]:
    """While what talks to libvirt is imported. Raises Failed."""
    try:
        yield
    except ImportError as error:
        raise Failed(
            f"libvirt's Python library cannot be loaded: {error}.",
            on=on,
            safe="Nothing was read or changed.",
            do=["apt install libvirt-dev pkg-config gcc python3-dev, then: pip install 'everywhen[libvirt]'"],
        ) from error
