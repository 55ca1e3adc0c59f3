# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents that were put aside: found again, unreadable to others, and gone with who holds them."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest

from everywhen.repository.aside import Aside
from everywhen.repository.errors import CacheRefused, Damaged


def opened_in(folder: Path) -> list[str]:
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.islink(link) and os.readlink(link).startswith(str(folder))]


def test_contents_are_found_and_seen_by_nobody(tmp_path: Path) -> None:
    chance = random.Random(3)
    aside = Aside(tmp_path, os.urandom)
    contents = [chance.randbytes(length) for length in (1, 65536, 512, 4096)] + [b"plain" * 1000]
    found = [aside.put(content) for content in contents]
    assert os.listdir(tmp_path) == []
    (link,) = opened_in(tmp_path)
    with open(link, "r+b", buffering=0) as file:
        raw = file.read()
        assert b"plain" not in raw
        assert [one() for one in found] == contents
        file.seek(100)
        file.write(bytes([raw[100] ^ 1]))
    with pytest.raises(Damaged, match="not as it was written"):
        found[1]()
    del aside
    assert found[0]() == contents[0]
    del found
    gc.collect()
    assert opened_in(tmp_path) == []


def test_where_nothing_can_be_put_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        Aside(tmp_path / "nowhere", os.urandom)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(CacheRefused):
            Aside(tmp_path, os.urandom)
