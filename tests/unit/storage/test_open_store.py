# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which store a name means; one that is meant to be elsewhere never becomes a folder here."""

from __future__ import annotations

from pathlib import Path

import pytest

from everywhen.storage.base import StorageError
from everywhen.storage.objectstore import CloudStore
from everywhen.storage.open import open_store
from everywhen.storage.posix import PosixStore


@pytest.mark.parametrize(
    "where",
    ["sftp://nas/backup", "s3:/bucket/x", "S3://bucket/x", "nas:/volume/x", "ann@nas.lan:/x", "file:///x", "rest+https://x/"],
)
def test_a_store_that_we_do_not_know_is_refused(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=f"no kind of store called .* If a folder is meant: ./{where}".replace("+", r"\+")):
        open_store(where, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["C:/backup", r"d:\backup", "./sftp:/nas", "/srv/a:/b", "backup", "a:b", "~/x"])
def test_paths(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_store(where, {}), PosixStore)


def test_object_stores() -> None:
    settings = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu"}
    assert isinstance(open_store("s3://bucket/x", settings), CloudStore)
