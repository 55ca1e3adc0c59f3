# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen sessions close`: what is open is ended from another terminal, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path

import pytest

from everywhen.interfaces.cli.context import holder
from everywhen.nbd.connection import NbdConnection
from everywhen.repository.keys.keys import read_superblock, unlock
from everywhen.repository.presence import Presence
from everywhen.repository.repository import Repository, Surroundings
from everywhen.storage.posix import PosixStore
from tests.mounts import Mount, can_mount
from tests.program import Program, ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are held by a descriptor on Linux alone")
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed (Debian: qemu-system-x86)"
)
CONTENT = bytes(1000) + b"x" * 100_000 + bytes(24)


@pytest.fixture
def points(program: Program) -> list[str]:
    """web1 has two, of which the first is opened here; web2 has one."""
    image = program.folder / "image.raw"
    image.write_bytes(CONTENT)
    first, second = (program.backup(vm, f"vda={image}")["point"] for vm in ("web1", "web2"))
    with image.open("r+b") as file:
        file.write(b"changed")
    return [first, second, program.backup("web1", f"vda={image}")["point"]]


class Opened:
    """A server, a mount or a copy, which says with a document that it is ready."""

    def __init__(self, program: Program, *arguments: str | Path) -> None:
        self.process = program.start(*arguments, "--json")
        assert self.process.stdout is not None
        said = "".join(takewhile(lambda line: line != "}\n", self.process.stdout))
        assert said, ended(self.process)
        self.document = json.loads(said + "}")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def output(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def test_a_server_ends_with_all_that_it_has_open(program: Program, points: list[str]) -> None:
    share = Opened(program, "serve", "webdav", "--listen", "127.0.0.1:0")
    try:
        url, server = share.document["url"], f"serve webdav {share.document['url']}"
        (idle,) = program.ok("sessions")
        assert (idle["what"], idle["moments"]) == (server, []), "nobody has opened anything"
        assert f"{server}  -  " in program.run("sessions").out
        for vm in ("web1", "web2"):
            output("curl", "-sf", f"{url}{vm}/@latest/disk/vda.raw")
        listed = program.ok("sessions")
        assert [one["what"] for one in listed] == [server, "serve webdav web1", "serve webdav web2"]
        assert listed[0]["id"][:6] in program.run("sessions").out
        assert program.run("sessions", "close", "nothing").code == 6
        assert program.run("sessions", "close").code == 2
        assert program.run("sessions", "close", "").code == 6
        closed = program.ok("sessions", "close", listed[1]["id"][:6])
        assert closed["pid"] == share.process.pid
        moments = [[{"vm": vm, "point": point}] for vm, point in (("web1", points[2]), ("web2", points[1]))]
        assert [one["moments"] for one in closed["closed"]] == [[], *moments]
        done = ended(share.process)
    finally:
        share.end()
    assert (done.code, done.err) == (0, "")
    assert program.ok("sessions") == []


@can_mount
@needs_qemu
def test_what_each_adapter_has_open_is_kept_until_it_is_closed(program: Program, points: list[str]) -> None:
    """One point that retention drops, open in four ways at once: read after prune and gc, then closed, or killed."""
    first = f"web1@{points[0]}"
    sock, folder = program.folder / "nbd.sock", program.folder / "mounted"
    folder.mkdir()
    with ExitStack() as stack:
        share = Opened(program, "serve", "webdav", "--listen", "127.0.0.1:0")
        stack.callback(share.end)
        device = Opened(program, "serve", "nbd", first, "--socket", sock)
        stack.callback(device.end)
        mount = Mount(program, folder)
        stack.callback(mount.take_away)
        booted = Opened(program, "boot", first, "--wait", "0s")
        stack.callback(booted.end)
        file = stack.enter_context((folder / f"web1/@{points[0]}/disk/vda.raw").open("rb"))
        url = f"{share.document['url']}web1/@{points[0]}/disk/vda.raw"
        connected = stack.enter_context(NbdConnection(str(sock), "", timeout=60))
        assert output("curl", "-sf", url) == CONTENT
        assert program.ok("policy", "set", "web1", "last 1")
        pruned = program.ok("prune", "--yes-more-than-a-third")
        assert (pruned["dropped"], pruned["vms"][0]["open"]) == ([], [points[0]])
        program.ok("gc")
        assert file.read() == CONTENT
        assert output("curl", "-sf", url) == CONTENT
        assert connected.answer(connected.ask(0, len(CONTENT))).data == CONTENT
        file.close()
        for one in (device, mount, booted):
            mine = [lease for lease in program.ok("sessions") if lease["pid"] == one.process.pid]
            assert [{"vm": "web1", "point": points[0]}] in [lease["moments"] for lease in mine]
            closed = program.ok("sessions", "close", mine[-1]["id"])
            assert closed["closed"] == [{key: lease[key] for key in ("id", "what", "moments")} for lease in mine]
            assert one.process.wait(60) == 0
        assert {one["pid"] for one in program.ok("sessions")} == {share.process.pid}
        share.end()
        assert program.ok("sessions") == [], "killed, it ends at once on this host"
    assert not sock.exists()
    assert not os.listdir(folder)
    assert program.ok("prune", "--yes-more-than-a-third")["dropped"] == [points[0]]


def test_what_ends_by_itself_is_left_alone(program: Program, points: list[str]) -> None:
    name = "ab" * 8
    here = holder()
    lease = Presence(f"leases/{name}", here, "restore web1", points[:1], time.time_ns(), time.time_ns())
    _write(program, lease)
    assert program.ok("sessions")[0]["id"] == name
    refused = program.run("sessions", "close", name)
    assert (refused.code, "ends by itself" in refused.err) == (2, True)


def _write(program: Program, lease: Presence) -> None:
    store = PosixStore(str(program.repo))
    surroundings = Surroundings(time.time_ns, bytes, lease.holder, program.folder / "cache")
    with Repository(store, unlock(store, read_superblock(store), None), surroundings) as repository:
        repository.documents.put(lease.name, lease.to_json())
