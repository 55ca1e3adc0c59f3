# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems made by the real tools and filled through the real file system, and what was put into them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everywhen.guest.tree import Content, Entry, FileSystem, Kind, Readable
from everywhen.guest.volumes import Volume, find_volumes, open_file_system
from everywhen.guest.walking import Found, find, walk

STEP = 1 << 20


class Image:
    """A file as a disk, from a byte on; counts what is read."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._start = start
        self.size = os.fstat(self._descriptor).st_size - start
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        self.bytes_read += length
        parts = []
        while length:
            part = os.pread(self._descriptor, length, self._start + offset)
            assert part
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def __del__(self) -> None:
        os.close(self._descriptor)


class Bytes:
    """Bytes as a disk."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return bytes(self.content[offset : offset + length])


def the_volume(disk: Readable, name: str = "p0") -> Volume:
    """The volume of this name on a disk."""
    return next(volume for volume in find_volumes({"vda": disk}).found if volume.name == name)


def opened(disk: Readable, name: str = "p0") -> FileSystem:
    """The file system in it."""
    return open_file_system(the_volume(disk, name))


def need(*tools: str) -> None:
    """Skips where a tool is not installed."""
    missing = [tool for tool in tools if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed")


def run(*command: str | Path, **options: Any) -> str:
    """A tool's standard output."""
    environment = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    words = [str(word) for word in command]
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        words, capture_output=True, check=False, env=environment, **options
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.decode(errors="replace")


def empty(path: Path, size: int) -> Path:
    """A sparse file."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def partitioned(disk: Path, *parts: Path, uuids: tuple[str, ...] = ()) -> Path:
    """A disk with a GPT and these in its partitions."""
    need("sfdisk")
    empty(disk, (2 << 20) + sum(part.stat().st_size for part in parts) + (1 << 20))
    lines = [f"size={part.stat().st_size >> 9}" for part in parts]
    lines = [f"{line}, uuid={uuid}" for line, uuid in zip(lines, uuids, strict=True)] if uuids else lines
    script = "\n".join(["label: gpt", *lines, ""])
    subprocess.run(["/sbin/sfdisk", "-q", str(disk)], input=script.encode(), check=True)
    at = 1 << 20
    with disk.open("r+b") as file:
        for part in parts:
            file.seek(at)
            file.write(part.read_bytes())
            at += part.stat().st_size
    return disk


@contextlib.contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    """The image mounted by this machine's kernel, which must allow it."""
    if os.geteuid():
        pytest.skip("only root may mount")
    folder = image.with_suffix(".mounted")
    folder.mkdir(exist_ok=True)
    with image.open("rb") as file:
        if file.read(4) == b"XFSB":  # one of its UUID that was unmounted is still there where another test's namespace has it
            options = (*options, "nouuid")
    done = subprocess.run(
        ["mount", "-o", ",".join(("loop", *options)), str(image), str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this kernel does not mount it: {done.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        unmount(folder)


@contextlib.contextmanager
def through_fuse(image: Path, *command: str, folder: Path | None = None) -> Iterator[Path]:
    """The image mounted by a FUSE program, which writes and then ends."""
    need(command[0], "fusermount3")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse")
    folder = folder or image.with_suffix(".mounted")
    folder.mkdir(exist_ok=True)
    run(*command, image, folder)
    try:
        yield folder
    finally:
        unmount(folder)
        until = time.monotonic() + 20
        while _in_use(image) and time.monotonic() < until:
            time.sleep(0.05)


@contextlib.contextmanager
def exfat_mounted(image: Path, *options: str) -> Iterator[Path]:
    """Mounted by a FUSE program that takes block devices only."""
    if os.geteuid():
        pytest.skip("only root may make loop devices")
    need("mount.exfat-fuse")
    device = run("losetup", "-f", "--show", image).strip()
    try:
        with through_fuse(Path(device), "mount.exfat-fuse", *options, folder=image.with_suffix(".mounted")) as folder:
            yield folder
    finally:
        run("losetup", "-d", device)


def _in_use(image: Path) -> bool:
    """Whether another process still has the image open: the FUSE program ends a little after its mount."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if folder.parent.name != str(os.getpid()) and any(os.readlink(entry) == str(image) for entry in folder.iterdir()):
                return True
    return False


def unmount(folder: Path) -> None:
    """Tries again for a while: whoever looks at all mounts may be in this one."""
    until = time.monotonic() + 20
    while subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode:
        assert time.monotonic() < until, f"{folder} cannot be unmounted"
        time.sleep(0.1)


def content_of(seed: int, length: int) -> bytes:
    """Bytes that cannot be packed, always the same for a seed."""
    return random.Random(seed).randbytes(length)


def fill(folder: Path) -> None:
    """All kinds of files that each of these file systems (and Windows) can have."""
    for length in (0, 1, 50, 700, 4095, 4096, 4097, 70_000, 1_300_000):
        (folder / f"random-{length}").write_bytes(content_of(length, length))
    (folder / "text").write_text("the same line again and again\n" * 30_000)
    (folder / "Grüße 日本語.txt").write_bytes(b"name")
    (folder / ("long-" * 40 + "name")).write_bytes(b"long")
    deep = folder / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (deep / "deep").write_bytes(b"deep")
    many = folder / "many"
    many.mkdir()
    for number in range(600):
        (many / f"file number {number}").write_bytes(b"%d" % number)
    (folder / "empty folder").mkdir()


def fill_sparse(folder: Path) -> None:
    """Holes, at the begin, within, and behind the end of what was written."""
    with (folder / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(content_of(1, 5000))
        file.seek(9 << 20)
        file.write(content_of(2, 5000))
        file.truncate(20 << 20)
    with (folder / "all hole").open("wb") as file:
        file.truncate(5 << 20)


def fill_unix(folder: Path) -> None:
    """What only Unix has: links, devices, owners, bytes that are no text, attributes."""
    fill_sparse(folder)
    (folder / "short").symlink_to("a/b")
    (folder / "long link").symlink_to("x" * 300)
    (folder / "round").symlink_to("round")
    (folder / "to folder").symlink_to("/a/b/../b/c")
    os.link(folder / "random-700", folder / "second name")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(folder / "large device", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    with open(os.fsencode(folder) + b"/no text \xff\xfe", "wb") as file:
        file.write(b"bytes")
    os.chown(folder / "text", 70_001, 70_002)
    (folder / "text").chmod(0o4751)
    os.utime(folder / "text", ns=(1_234_567_890_123_456_789, 3_234_567_890_987_654_321))
    os.utime(folder / "random-1", ns=(-1_000_000_000, -86_400_000_000_000))
    os.setxattr(folder / "random-50", "user.small", b"value")
    os.setxattr(folder / "random-50", "user.large", content_of(3, 700))
    os.setxattr(folder / "text", "security.capability", bytes.fromhex("010000020004000000000000000000000000000000"[:40]))
    os.setxattr(folder / "random-700", "system.posix_acl_access", ACL)
    os.setxattr(folder / "a", "trusted.one", b"1")


ACL = bytes.fromhex("0200000001000600ffffffff02000700d204000004000400ffffffff10000700ffffffff20000400ffffffff")
"""Version 2: owner rw, user 1234 rwx, group r, mask rwx, others r."""


def written_and_dropped(folder: Path, used: int) -> None:
    """Leaves bytes that are not zero in free blocks, so that whoever shows what lies there is found out."""
    with (folder / "dropped").open("wb", buffering=0) as file, contextlib.suppress(OSError):  # as much as there is room
        while file.tell() < used:
            file.write(b"STALE!! " * 65_536)
    os.sync()
    (folder / "dropped").unlink()
    os.sync()


def digest(content: Content) -> str:
    """SHA-256 of a content, read in steps."""
    total, at = hashlib.sha256(), 0
    while at < content.size:
        part = content.read(at, STEP)
        assert part
        total.update(part)
        at += len(part)
    return total.hexdigest()


def entries(system: FileSystem) -> dict[str, Entry]:
    """All entries by path; each can be read."""
    found: dict[str, Entry] = {}
    for item in walk(system, Found("/", system.root)):
        assert isinstance(item, Found), item
        found[item.path] = item.entry
    return found


def compare(
    system: FileSystem,
    folder: Path,
    *,
    unix: bool = True,
    leave_out: tuple[str, ...] = ("/lost+found",),
    since_ns: int | None = None,
) -> None:
    """Everything that `folder`, where the same file system is mounted, has: names, kinds, contents, owners, times and so on.

    `since_ns`: what the kernel itself changed from then on, when it replayed a log, has another time of change.
    """
    shown = {path: entry for path, entry in entries(system).items() if path not in leave_out}
    real = {"/" + os.path.relpath(path, folder): path for path in _below(folder)}
    assert set(shown) == {path for path in real if path not in leave_out}
    for path, entry in shown.items():
        status = os.lstat(real[path])
        changed = None if since_ns is not None and status.st_ctime_ns >= since_ns else status.st_ctime_ns
        _compare_entry(system, entry, real[path], status, unix=unix, changed=changed)
        assert find(system, path, follow=False).entry == entry


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root) / name for name in (*folders, *files))


_KINDS: dict[Callable[[int], bool], Kind] = {
    stat.S_ISREG: Kind.FILE,
    stat.S_ISDIR: Kind.FOLDER,
    stat.S_ISLNK: Kind.LINK,
    stat.S_ISBLK: Kind.BLOCK_DEVICE,
    stat.S_ISCHR: Kind.CHARACTER_DEVICE,
    stat.S_ISFIFO: Kind.PIPE,
    stat.S_ISSOCK: Kind.SOCKET,
}


def _compare_entry(
    system: FileSystem, entry: Entry, path: Path, status: os.stat_result, *, unix: bool, changed: int | None
) -> None:
    assert entry.kind is next(kind for test, kind in _KINDS.items() if test(status.st_mode)), path
    if entry.kind is Kind.FILE:
        content = system.open(entry)
        assert (entry.size, content.size) == (status.st_size, status.st_size), path
        with path.open("rb") as file:
            assert digest(content) == hashlib.file_digest(file, "sha256").hexdigest(), path
        runs_agree(content, path)
    if entry.kind is Kind.LINK:
        assert entry.target == os.readlink(path)
    if unix:
        owner = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_nlink)
        assert (entry.mode, entry.uid, entry.gid, entry.links) == owner, path
        assert entry.times.modified == status.st_mtime_ns, path
        assert changed in (None, entry.times.changed), path
        if entry.device:
            assert entry.device == (os.major(status.st_rdev), os.minor(status.st_rdev))
        names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("trusted.SGI_ACL")]
        real = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}  # XFS shows ACLs twice
        assert {name: value for name, value in system.attributes(entry).items() if name in real} == real, path


def status_of(path: Path) -> tuple[object, ...]:
    """What a copy has to have in common with its original."""
    status = os.lstat(path)
    is_link, is_folder = stat.S_ISLNK(status.st_mode), stat.S_ISDIR(status.st_mode)
    return (
        stat.S_IFMT(status.st_mode),
        0 if is_link else stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        0 if is_folder else status.st_size,
        0 if is_folder else status.st_nlink,
        os.readlink(path)
        if is_link
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if stat.S_ISREG(status.st_mode)
        else None,
        {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)},
    )


def below(folder: Path) -> dict[str, Path]:
    """All that is in a folder, by path from there."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            found[str(path.relative_to(folder))] = path
    return found


def runs_agree(content: Content, path: Path) -> None:
    """Runs follow each other to the end; what they call zero is zero; reads across them, backwards, agree with the file."""
    at = 0
    data = path.read_bytes()
    for one in content.runs():
        assert one.start == at
        assert one.length > 0
        at = one.end
        if one.zero:
            assert not any(data[one.start : one.end])
    assert at == len(data)
    for offset in sorted((random.Random(at).randrange(at + 1) for _ in range(8)), reverse=True):
        assert content.read(offset, 5000) == data[offset : offset + 5000]
