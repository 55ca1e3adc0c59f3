# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU's user is let to our sockets and to nothing else; where that cannot be, the folder in the way is named."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.capture.socket_access import NoAccess, ProcessUser, let_connect, let_into

STRANGER = ProcessUser(64055, 64056, frozenset({64056}))
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and be another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Below folders that all may enter, which a test's own are not."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        (path / "web1").mkdir(mode=0o700)
        yield path / "web1" / "sockets"


def as_stranger(does: str, path: Path) -> bool:
    """Whether the other user can make a socket (`Local`) or reach it (`Peer`). In Perl: our Python may be in a home folder."""
    line = f"exit !IO::Socket::UNIX->new({does} => $ARGV[0])"
    command = ["perl", "-MIO::Socket::UNIX", "-e", line, str(path)]
    user, group = STRANGER.uid, STRANGER.gid
    return subprocess.run(command, user=user, group=group, extra_groups=[], check=False, cwd="/").returncode == 0


def test_whose_process_it_is() -> None:
    assert ProcessUser.of_label("+64055:+105") == ProcessUser(64055, 105, frozenset({105}))
    assert ProcessUser.of_label("root:root")[:2] == (0, 0)
    assert ProcessUser.of_label("+0:+0").groups >= {0}
    us = ProcessUser.of_label("")
    assert us.uid == os.geteuid()
    assert os.getegid() in us.groups
    for label in ("nobody-of-this-name:root", "+1:+", "root", "root:no-group-of-this-name"):
        with pytest.raises(NoAccess, match="no user of this host"):
            ProcessUser.of_label(label)


def test_rights_are_those_of_the_first_triple_that_fits(folder: Path) -> None:
    folder.mkdir()
    owner, group = ProcessUser(folder.stat().st_uid, 1, frozenset({1})), folder.stat().st_gid
    if owner.uid == 0:
        os.chown(folder, 12345, -1)
        owner = ProcessUser(12345, 1, frozenset({1}))
    folder.chmod(0o017)
    assert not owner.may(folder, 1), "the owner has less than all others"
    assert ProcessUser(2, group, frozenset({group})).may(folder, 1)
    assert not ProcessUser(2, group, frozenset({group})).may(folder, 3)
    assert ProcessUser(2, 3, frozenset({3})).may(folder, 7)
    assert ProcessUser(0, 0, frozenset({0})).may(folder, 7)


@root_only
def test_qemu_makes_and_reaches_sockets(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    path = folder / "s"
    assert not as_stranger("Local", path)
    let_into(folder, STRANGER)
    assert as_stranger("Local", path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o770, "nobody else may"
    assert folder.stat().st_uid == 0, "it stays ours"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o710, "it passes through, and sees nothing"
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(folder / "sink"))
        ours.listen()
        (folder / "sink").chmod(0o755)
        assert not as_stranger("Peer", folder / "sink")
        let_connect(folder / "sink", STRANGER)
        assert as_stranger("Peer", folder / "sink")
        assert stat.S_IMODE((folder / "sink").stat().st_mode) == 0o660


def test_a_folder_in_the_way_is_named(folder: Path) -> None:
    folder.parent.parent.chmod(0o700)
    folder.mkdir(mode=0o700)
    with pytest.raises(NoAccess, match=f"may not pass through {folder.parent.parent};"):
        let_into(folder, STRANGER)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "nothing was changed"
    let_into(folder, ProcessUser.of_label(""))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "we reach what is ours"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give all groups")
def test_without_rights_it_is_said(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    with pytest.raises(NoAccess, match="only root"):
        let_into(folder, STRANGER)
