# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whoever asks the process that parses guests' files is safe from it: from what it says, from its silence, and from its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from everywhen.guest.confinement import MEMORY
from everywhen.guest.errors import GuestDamaged, GuestError, GuestLimit, GuestUnsupported, NoSuchPath
from everywhen.guest.tree import Entry, Kind
from everywhen.services.view import remote_file_system
from everywhen.services.view.files import GuestFiles
from everywhen.services.view.parser import PATIENCE_S, Parser, ParserEnded
from everywhen.services.view.remote_file_system import RemoteFileSystem

MIB = 1 << 20


class Broken(Exception):
    """A disk that cannot be read."""


class Clock:
    """Time that goes on when it is told to, and by `step` seconds whenever it is asked for."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Disk:
    """A Device; `broken` bytes cannot be read, and each read takes an hour by the clock."""

    def __init__(self, content: bytes = bytes(MIB), *, broken: range = range(0), clock: Clock | None = None) -> None:
        self.content = content
        self.size = len(content)
        self.broken = broken
        self.clock = clock or Clock()

    def read(self, offset: int, length: int) -> bytes:
        self.clock.now += 3600.0
        if offset < self.broken.stop and offset + length > self.broken.start:
            raise Broken(f"bytes {self.broken} are lost")
        return self.content[offset : offset + length]

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return None

    def status(self, offset: int, length: int) -> Iterable[tuple[int, bool]]:
        yield length, False


FORGED = """
import json, os, socket, struct, sys, time
channel = socket.socket(fileno=int(sys.argv[1].removeprefix("=")))
opened = {"kind": "ntfs", "label": "", "uuid": "", "notes": [], "local_times": False, "case_sensitive": True}
opened["root"] = {"name": "", "kind": "folder", "number": 2, "size": 0, "times": [None] * 4, "links": 1, "subvolume": 0}
while True:
    asked = struct.unpack(">II", channel.recv(8, socket.MSG_WAITALL))
    question = json.loads(channel.recv(asked[0], socket.MSG_WAITALL))
    body = b""
    answer = opened if question["ask"] == "open" else None
    def entry(name, **more):
        return opened["root"] | {"name": name, "kind": "file", **more}
    if answer is None:
        answer = BODY
    head = json.dumps(answer).encode() if isinstance(answer, dict) else answer
    channel.sendall(struct.pack(">II", len(head), len(body)) + head + body)
"""


Forged = Callable[..., RemoteFileSystem]


@pytest.fixture
def forged(tmp_path: Path) -> Iterator[Forged]:
    """A file system whose process answers all but the first question with what an expression says."""
    made: list[Parser] = []

    def system(expression: str, clock: Clock | None = None) -> RemoteFileSystem:
        script = tmp_path / f"forged{len(made)}.py"
        script.write_text(FORGED.replace("BODY", expression))
        made.append(Parser({}, (Broken,), command=(sys.executable, str(script)), clock=clock or Clock()))
        return RemoteFileSystem(made[-1], "vda", "p1")

    yield system
    for parser in made:
        parser.close()


@pytest.mark.parametrize(
    "answer",
    [
        "{'entries': [entry('../../etc/passwd')], 'more': False}",
        "{'entries': [entry('..')], 'more': False}",
        "{'entries': [entry('a/b')], 'more': False}",
        "{'entries': [entry('')], 'more': False}",
        "{'entries': [entry('a\\0b')], 'more': False}",
        "{'entries': [entry('x' * 5000)], 'more': False}",
        "{'entries': [entry('a', kind='gate')], 'more': False}",
        "{'entries': [entry('a', size=-1)], 'more': False}",
        "{'entries': [entry('a', size=1 << 64)], 'more': False}",
        "{'entries': [entry('a', size=True)], 'more': False}",
        "{'entries': [entry('a', mode=0o100644)], 'more': False}",
        "{'entries': [entry('a', target='x\\0')], 'more': False}",
        "{'entries': [entry('a', times=[1 << 200] * 4)], 'more': False}",
        "{'entries': [entry('a', times=[])], 'more': False}",
        "{'entries': [entry('a', device=['8', 0])], 'more': False}",
        "{'entries': 'many', 'more': False}",
        "{'entries': [], 'more': True}",
        "{'entries': [entry('a')]}",
        "{'failed': {'kind': 'SystemExit', 'text': ''}}",
        "{'failed': {'kind': 'GuestDamaged', 'text': 'x' * 5000}}",
        "b'['",
        "b'[' * 100000",
        "b'9' * 5000",
        "b' ' * (5 << 20)",
        "os._exit(3)",
        "os.abort()",
    ],
)
def test_what_cannot_be_true_fails_the_question_and_nothing_else(forged: Forged, answer: str) -> None:
    system = forged(answer)
    for _ in range(2):  # the second one is asked of another process
        with pytest.raises(ParserEnded):
            list(system.entries(system.root))


@pytest.mark.parametrize("answer", ["{'streams': [{'name': '../x', 'size': 1}]}", "{'streams': [{'name': '', 'size': 1}]}"])
def test_streams_become_names_of_files(forged: Forged, answer: str) -> None:
    system = forged(answer)
    with pytest.raises(ParserEnded):
        system.streams(system.root)


def test_runs_and_contents_are_held_to_what_was_asked(forged: Forged) -> None:
    file = Entry(name="a", kind=Kind.FILE, number=5, size=9)
    runs = "{'runs': [[0, 4, 0, None, None], [2, 4, 0, None, None]], 'more': False}"
    content = forged(f"{{'size': 9}} if question['ask'] == 'content' else {runs}").open(file)
    with pytest.raises(ParserEnded):
        list(content.runs())
    with pytest.raises(ParserEnded):  # nine bytes were asked for, none came
        content.read(0, 9)
    with pytest.raises(ParserEnded):  # all of it, and yet not
        forged("{'size': 9, 'runs': []}").open(file)
    beyond = "{'runs': [[0, 1 << 60, 0, None, None]], 'more': False}"
    with pytest.raises(ParserEnded):
        list(forged(f"{{'size': 9}} if question['ask'] == 'content' else {beyond}").open(file).runs())
    with pytest.raises(ParserEnded):
        forged("{'size': 0, 'runs': [[0, 1 << 60, 0, None, None]]}").open(file)


def test_a_folder_without_end_ends(forged: Forged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file_system, "_MOST_LISTED", 1000)
    system = forged("{'entries': [entry('a')] * 100, 'more': True}")
    with pytest.raises(GuestLimit, match="more than 1,000"):
        list(system.entries(system.root))


def test_what_came_before_an_error_is_shown(forged: Forged) -> None:
    system = forged("{'entries': [entry('a')], 'more': False, 'failed': {'kind': 'GuestDamaged', 'text': 'rubbish'}}")
    entries = system.entries(system.root)
    assert next(entries).name == "a"
    with pytest.raises(GuestDamaged, match="rubbish"):
        next(entries)


def test_patience_ends_and_the_next_question_is_answered(forged: Forged) -> None:
    clock = Clock()
    system = forged("time.sleep(1000) if question['ask'] == 'entries' else {'streams': []}", clock)
    clock.step = PATIENCE_S
    with pytest.raises(GuestLimit, match="more than 60 s"):
        list(system.entries(system.root))
    clock.step = 0.0
    assert system.streams(system.root) == ()


def test_what_a_disk_takes_does_not_count() -> None:
    clock = Clock()
    parser = Parser({"vda": Disk(clock=clock)}, (Broken,), clock=clock)
    try:
        answer, _ = parser.ask({"ask": "volumes"}, lambda answer: answer)
        assert answer.head["volumes"][0]["kind"] == "unknown"
        assert clock.now >= 3600.0
    finally:
        parser.close()


def test_a_disk_that_cannot_be_read_says_so_itself() -> None:
    files = GuestFiles({"vda": Disk(broken=range(1024, 2048))}, (Broken,))
    try:
        with pytest.raises(Broken, match="are lost"):
            _ = files.volumes
    finally:
        files.close()


def test_in_the_end_nobody_starts_it_again() -> None:
    files = GuestFiles({"vda": Disk()}, (Broken,))
    assert files.volumes
    files.close()
    assert files.device(files.volumes[0]).read(0, 1) == b"\0", "it starts again"
    files.end()
    with pytest.raises(ParserEnded, match="not read any more"):
        files.device(files.volumes[0]).read(0, 1)


def test_disks_without_a_system() -> None:
    files = GuestFiles({"vda": Disk(), "vdb": Disk(b"LUKS\xba\xbe" + bytes(MIB))}, (Broken,))
    try:
        assert [(one.disks, one.name, one.words) for one in files.volumes] == [
            (("vda",), "p0", "unknown"),
            (("vdb",), "p0", "encrypted (LUKS)"),
        ]
        with pytest.raises(GuestUnsupported, match=r"no volume looks like .*vdb:/p0 is not shown: encrypted \(LUKS\)"):
            files.place(None, "/etc")
        with pytest.raises(GuestError, match="encrypted"):
            files.place("vdb", "/p0/etc")
        with pytest.raises(NoSuchPath):
            files.place("vda", "/p7/etc")
        assert files.beside("vda", "/") == ["p0"]
    finally:
        files.close()


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("open('/etc/hostname')", "OSError"),
        ("open('/tmp/x', 'w')", "OSError"),
        ("socket.socket()", "OSError"),
        ("os.fork()", "OSError"),
        (f"bytearray({MEMORY})", "MemoryError"),
        ("os.write(9, bytes(1))", "OSError"),
    ],
)
def test_the_process_gives_up_what_it_does_not_need(attempt: str, error: str) -> None:
    """Done to itself by the very code that the process runs first."""
    code = f"""
import os, socket
from everywhen.guest.confinement import confine
confine(3)
try:
    {attempt}
except (OSError, MemoryError) as error:
    os.write(1, type(error).__mro__[-4 if isinstance(error, OSError) else 0].__name__.encode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == error


def test_the_process_that_is_asked_has_given_it_up() -> None:
    parser = Parser({"vda": Disk(), "vdb": Disk()}, (Broken,))
    try:
        parser.ask({"ask": "volumes"}, lambda answer: answer)
        assert parser._running
        there = Path(f"/proc/{parser._running._process.pid}")
        limits = {line[:26].strip(): line[26:].split()[:2] for line in (there / "limits").read_text().splitlines()}
        assert limits["Max address space"] == limits["Max data size"] == [str(MEMORY)] * 2
        assert limits["Max open files"] == ["6", "6"]
        for name in ("Max file size", "Max processes", "Max core file size"):
            assert limits[name] == ["0", "0"]
        assert sorted(os.listdir(there / "fd"), key=int) == ["0", "1", "2", "3", "4", "5"]
        assert "NoNewPrivs:\t1" in (there / "status").read_text()
        if os.geteuid() == 0:
            assert "Uid:\t65534\t65534\t65534\t65534" in (there / "status").read_text()
        assert (there / "environ").read_bytes() == b"OPENBLAS_NUM_THREADS=1\0"
    finally:
        parser.close()


def test_it_ends_when_nobody_is_there_to_ask() -> None:
    """Also when whoever asked could not say goodbye."""
    code = """
import os, signal
from everywhen.services.view.parser import Parser
parser = Parser({}, ())
parser.ask({"ask": "volumes"}, lambda answer: answer)
print(parser._running._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    asking = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert asking.returncode == -signal.SIGKILL
    process, deadline = Path(f"/proc/{int(asking.stdout)}/cmdline"), time.monotonic() + 60
    while process.exists() and process.read_bytes():  # empty while nobody has taken note of its end
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_files_stay_closed_where_the_kernel_has_landlock() -> None:
    """Even with descriptors to spare."""
    code = """
import ctypes
from everywhen.guest import confinement
if ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
    print("no Landlock")
else:
    confinement._without_new_rights()
    for path, mode in (("/etc/passwd", "r"), ("/tmp/new", "w")):
        try:
            open(path, mode)
        except PermissionError:
            print("closed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split("\n")
    if done[0] == "no Landlock":
        pytest.skip("this kernel has no Landlock")
    assert done == ["closed", "closed", ""]


def test_time_of_the_processor_ends_it() -> None:
    code = "from everywhen.guest.confinement import timed\ntimed(0.2)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -27  # SIGPROF
