# SPDX-License-Identifier: AGPL-3.0-or-later
"""The file system store on media that refuse: really full, really read-only (mounts in a namespace of this test's own)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FULL = """
import sys
from everywhen.storage.base import OutOfSpace
from everywhen.storage.posix import PosixStore
store = PosixStore(sys.argv[1])
store.put("packs/a", [b"a" * 600_000])
for name, if_absent in [("packs/b", True), ("packs/a", False), ("new/b", True)]:
    try:
        store.put(name, [b"b" * 200_000] * 3, if_absent=if_absent)
    except OutOfSpace:
        continue
    sys.exit(f"{name} was stored")
assert store.get("packs/a") == b"a" * 600_000
assert store.space().free > 300_000, "temporary files were left behind"
assert [found.name for found in store.list()] == ["packs/a"]
store.delete("packs/a")
store.put("packs/b", [b"b" * 600_000])
"""

READ_ONLY = """
import sys
from everywhen.storage.base import ReadOnly
from everywhen.storage.posix import PosixStore
store = PosixStore(sys.argv[1])
assert store.get("packs/a") == b"content"
assert store.get_range("packs/a", 3, 3) == b"ten"
assert [found.name for found in store.list()] == ["packs/a"]
assert store.space().total > 0
for change in (
    lambda: store.put("packs/b", [b""], if_absent=True),
    lambda: store.put("packs/a", [b""]),
    lambda: store.put("new/b", [b""]),
    lambda: store.delete("packs/a"),
):
    try:
        change()
    except ReadOnly:
        continue
    sys.exit("it was changed")
"""


def run_mounted(mount: str, program: str, folder: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare (util-linux) is not installed")
    private = [unshare, "--map-root-user", "--mount"]
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let the user make a mount namespace")
    script = f'{mount} && exec "$1" -c "$2" "$0"'
    command = [*private, "sh", "-c", script, str(folder), sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_full_medium_loses_nothing_and_works_again_when_there_is_room(tmp_path: Path) -> None:
    run_mounted('mount -t tmpfs -o size=1m none "$0"', FULL, tmp_path)


def test_a_read_only_medium_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "a").write_bytes(b"content")
    run_mounted('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', READ_ONLY, tmp_path)
