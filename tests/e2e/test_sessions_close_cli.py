# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen sessions close`: what is open is ended from another terminal, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import takewhile

import pytest

from everywhen.interfaces.cli.context import holder
from everywhen.repository.keys.keys import read_superblock, unlock
from everywhen.repository.presence import Presence
from everywhen.repository.repository import Repository, Surroundings
from everywhen.storage.posix import PosixStore
from tests.program import Program, ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are held by a descriptor on Linux alone")


@pytest.fixture
def points(program: Program) -> list[str]:
    image = program.folder / "image.raw"
    image.write_bytes(bytes(1000) + b"x" * 100_000)
    return [program.backup(vm, f"vda={image}")["point"] for vm in ("web1", "web2")]


def test_a_server_ends_with_all_that_it_has_open(program: Program, points: list[str]) -> None:
    process = program.start("serve", "webdav", "--listen", "127.0.0.1:0", "--json")
    try:
        assert process.stdout is not None
        url = json.loads("".join(takewhile(lambda line: line != "}\n", process.stdout)) + "}")["url"]
        for vm in ("web1", "web2"):
            subprocess.run(["curl", "-sf", f"{url}{vm}/@latest/disk/vda.raw", "-o", "/dev/null"], check=True)
        listed = program.ok("sessions")
        assert [one["what"] for one in listed] == ["serve webdav web1", "serve webdav web2"]
        assert listed[0]["id"][:6] in program.run("sessions").out
        assert program.run("sessions", "close", "nothing").code == 6
        assert program.run("sessions", "close").code == 2
        assert program.run("sessions", "close", "").code == 6
        closed = program.ok("sessions", "close", listed[0]["id"][:6])
        assert closed["pid"] == process.pid
        assert [one["moments"] for one in closed["closed"]] == [
            [{"vm": vm, "point": point}] for vm, point in zip(("web1", "web2"), points, strict=True)
        ]
        done = ended(process)
    finally:
        process.kill()
        process.communicate()
    assert (done.code, done.err) == (0, "")
    assert program.ok("sessions") == []


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
