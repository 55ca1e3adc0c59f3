# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a host is fit for capture; nothing is written to find out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from everywhen.services.ages import DAY
from everywhen.services.diagnosis import Verdict
from everywhen.services.failures import NotFound
from everywhen.services.host_checks import check_clock, check_folder, check_repository
from everywhen.storage.memory import MemoryStore
from everywhen.storage.posix import PosixStore
from tests.laboratory import World


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (check,) = check_folder(tmp_path / "a" / "b", [])
    assert check.verdict is Verdict.YES
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_folder(tmp_path / "file", [])[0].verdict is Verdict.NO
    (too_long,) = check_folder(tmp_path / ("x" * 100), [])
    assert too_long.verdict is Verdict.NO
    assert "107 bytes" in too_long.words


def test_a_folder_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - 10**10, 10**10))
    assert check_folder(tmp_path, [])[0].verdict is Verdict.CARE
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 900, 100))
    assert check_folder(tmp_path, [])[0].verdict is Verdict.NO, "what is left is what a spool leaves to others"


def test_images_beside_the_spool_are_named(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.touch()
    checks = check_folder(tmp_path, [str(image), "a.raw", "nbd://host/x", "/dev/null"])
    assert [check.verdict for check in checks] == [Verdict.YES, Verdict.CARE]
    assert f"as {image}:" in checks[1].words


def test_a_repository(tmp_path: Path) -> None:
    world = World(tmp_path)
    store = PosixStore(str(tmp_path / "repo"))
    world.create(store, encrypted=True)
    before = sorted((tmp_path / "repo").rglob("*"))
    checks, created = check_repository(store, [])
    assert [check.verdict for check in checks] == [Verdict.YES]
    assert created % 10**9 == 0
    assert check_clock(created, created).verdict is Verdict.YES
    image = tmp_path / "a.raw"
    image.touch()
    checks, _ = check_repository(store, [str(image)])
    assert [check.verdict for check in checks] == [Verdict.YES, Verdict.CARE]
    assert sorted((tmp_path / "repo").rglob("*")) == before
    with pytest.raises(NotFound):
        check_repository(MemoryStore(), [])


def test_a_clock_behind_the_past() -> None:
    assert check_clock(100 * DAY, 101 * DAY).verdict is Verdict.YES
    wrong = check_clock(100 * DAY, 103 * DAY)
    assert wrong.verdict is Verdict.NO
    assert "3 d before" in wrong.words
