# SPDX-License-Identifier: AGPL-3.0-or-later
"""Databases that somebody was writing to, opened from the mounted folder of an earlier moment, have the rows of that time: all
that was committed, and nothing else."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.guest_images import empty, mounted, need, run, unmount
from tests.long_forms import in_soak
from tests.mounts import Mount, can_mount
from tests.processes import running
from tests.program import Program

pytestmark = can_mount

ROWS = 40
"""More for each moment than the one before."""
NOT_COMMITTED = 1_000_000
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
"""Where Debian has its programs, which are on nobody's path."""


@contextmanager
def guest(image: Path, size: int) -> Iterator[Path]:
    """The file system of a guest that is running, in a file: the kernel writes its journal back when it must, not before."""
    run("mkfs.ext4", "-q", empty(image, size))
    with mounted(image, "commit=300") as root:
        (root / "etc").mkdir()
        (root / "etc" / "os-release").touch()
        yield root


def back_up(program: Program, image: Path, number: int) -> None:
    """What is on the disk now, in the middle of the guest's work: nothing is flushed, frozen or unmounted."""
    taken = image.with_name("taken.img")
    subprocess.run(["cp", "--sparse=always", str(image), str(taken)], check=True)
    program.later_s = number * 60
    program.backup("web1", f"vda={taken}")


@contextmanager
def mounted_moments(program: Program, folder: Path) -> Iterator[list[Path]]:
    """The guest's files at each of its moments."""
    folder.mkdir()
    mount = Mount(program, folder)
    try:
        yield [moment / "files" for moment in mount.moments()]
    finally:
        mount.take_away()


@pytest.mark.parametrize("mode", ["delete", pytest.param("wal", marks=in_soak)])
def test_sqlite(program: Program, tmp_path: Path, mode: str) -> None:
    image = tmp_path / "vda.img"
    with guest(image, 16 << 20) as root, ExitStack() as stack:
        path = root / "srv.db"
        one = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
        one.execute(f"pragma journal_mode={mode}")
        one.execute("pragma synchronous=full")
        one.execute("create table entry (number integer primary key, text text)")
        for number in range(3):
            for row in range(number * ROWS, (number + 1) * ROWS):
                one.execute("insert into entry values (?, ?)", (row, "x" * 500))
            one.execute("pragma cache_spill=1")
            one.execute("pragma cache_size=1")  # so that a transaction that goes on is in the files already
            one.execute("begin")
            one.execute("update entry set text = 'z' || text")
            one.executemany("insert into entry values (?, ?)", ((NOT_COMMITTED + more, "y" * 3000) for more in range(100)))
            os.sync()
            back_up(program, image, number)
            one.execute("rollback")
    with mounted_moments(program, tmp_path / "all") as moments:
        assert len(moments) == 3
        beside = "srv.db-journal" if mode == "delete" else "srv.db-wal"
        for number, files in enumerate(moments):
            assert (files / beside).stat().st_size > 20_000, "the transaction had begun to be written"
            copy = tmp_path / f"copy-{number}"
            subprocess.run(["cp", "-a", files, copy], check=True)
            with closing(sqlite3.connect(copy / "srv.db")) as found:
                assert found.execute("pragma integrity_check").fetchall() == [("ok",)]
                rows = found.execute("select number, text from entry order by number").fetchall()
            assert rows == [(row, "x" * 500) for row in range((number + 1) * ROWS)]


class Cluster:
    """A PostgreSQL server in `folder`, as a user who may not do everything; for local clients."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self.sockets = sockets

    @staticmethod
    def user() -> pwd.struct_passwd:
        """Whom Debian has for it; root may not run it."""
        return pwd.getpwnam("postgres")

    @classmethod
    def command(cls, program: str, *arguments: str | Path) -> list[str]:
        """One of its programs, as that user."""
        assert POSTGRES is not None
        user = cls.user()
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig", "KILL", "--"]
        return [*become, str(POSTGRES / program), *map(str, arguments)]

    @contextmanager
    def runs(self) -> Iterator[None]:
        """From when it can be asked; then it ends at once, as by a power cut, and all its processes with it."""
        started = self.command("postgres", "-D", self.folder, "-k", self.sockets, "-c", "listen_addresses=")
        with running(started, self.sockets.parent, lambda: self._ready()):
            yield
            stop = self.command("pg_ctl", "stop", "-D", self.folder, "-m", "immediate")
            subprocess.run(stop, check=True, capture_output=True)
        for left in self.sockets.iterdir():
            left.unlink()

    def _ready(self) -> bool:
        asked = self.command("pg_isready", "-q", "-h", self.sockets, "-d", "postgres")
        return subprocess.run(asked, check=False).returncode == 0

    def client(self, *arguments: str) -> list[str]:
        """psql, which stops at the first error."""
        return self.command("psql", "-h", self.sockets, "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-qAtX", *arguments)

    def sql(self, text: str) -> str:
        """What it answers."""
        done = subprocess.run(self.client("-c", text), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@in_soak
def test_postgresql(program: Program, tmp_path: Path) -> None:
    """Copied out of the mount, and over an overlay without a copy: both recover by their own log, as after a power cut."""
    if POSTGRES is None or os.geteuid():
        pytest.skip("postgresql is not installed, or who runs this is not root")
    need("setpriv")
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(above.stat().st_mode | 0o011)
    user = Cluster.user()
    sockets = tmp_path / "s"
    sockets.mkdir()
    os.chown(sockets, user.pw_uid, user.pw_gid)
    image = tmp_path / "vda.img"
    with guest(image, 200 << 20) as root:
        folder = root / "pg"
        folder.mkdir(mode=0o700)
        os.chown(folder, user.pw_uid, user.pw_gid)
        made = Cluster(folder, sockets)
        subprocess.run(made.command("initdb", "-D", folder, "-A", "trust"), check=True, capture_output=True)
        with made.runs():
            made.sql("create table entry (number bigint primary key, text text)")
            for number in range(3):
                numbers = f"generate_series({number * ROWS}, {(number + 1) * ROWS - 1}) n"
                made.sql("insert into entry select n, repeat('x', 500) from " + numbers)  # noqa: S608 - numbers of ours
                with _unfinished(made):
                    back_up(program, image, number)
    with mounted_moments(program, tmp_path / "all") as moments:
        for number, files in enumerate(moments):
            copy = tmp_path / f"copy-{number}"
            subprocess.run(["cp", "-a", files / "pg", copy], check=True)
            _has_the_rows(Cluster(copy, sockets), number)
            shutil.rmtree(copy)
            with _over(files / "pg", tmp_path / f"over-{number}") as over:
                _has_the_rows(Cluster(over, sockets), number)


@contextmanager
def _unfinished(cluster: Cluster) -> Iterator[None]:
    """While a transaction has written rows, and is not committed."""
    client = cluster.client("-c", "begin", "-f", "-")
    with subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("insert into entry select 1000000 + n, 'y' from generate_series(1, 1000) n;\n")
        process.stdin.write("select 'written';\n")
        process.stdin.flush()
        assert process.stdout.readline() == "written\n"
        cluster.sql("checkpoint")  # so that its rows are in the table's file, too
        yield
        process.kill()


def _has_the_rows(cluster: Cluster, number: int) -> None:
    (cluster.folder / "postmaster.pid").unlink(missing_ok=True)  # the guest's, whose process is none of this machine's
    with cluster.runs():
        assert (
            cluster.sql("select count(*), min(number), max(number) from entry")
            == f"{(number + 1) * ROWS}|0|{(number + 1) * ROWS - 1}"
        )
        assert cluster.sql("set enable_indexscan = off; set enable_bitmapscan = off; select count(text) from entry") == str(
            (number + 1) * ROWS
        )


@contextmanager
def _over(lower: Path, folder: Path) -> Iterator[Path]:
    """A folder of the mount that can be written to: what is written goes into a folder here."""
    upper, work, over = (folder / name for name in ("upper", "work", "over"))
    for one in (upper, work, over):
        one.mkdir(parents=True)
    os.chown(upper, Cluster.user().pw_uid, Cluster.user().pw_gid)
    upper.chmod(0o700)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(over)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    try:
        yield over
    finally:
        unmount(over)
