# SPDX-License-Identifier: AGPL-3.0-or-later
"""Memory of all clients of an NBD server together: what is bounded, who waits, and who is hung up on."""

from __future__ import annotations

import gc
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everywhen.nbd import protocol as p
from everywhen.nbd.room import OWN, Room
from everywhen.nbd.server import Request
from tests.hypervisor import eventually
from tests.memory_devices import MIB, MemoryDevice, MemoryExports, Served, served

LARGE = 2 * MIB


def request(command: int, cookie: int, length: int, data: bytes = b"") -> bytes:
    return p.REQUEST.pack(p.REQUEST_MAGIC, 0, command, cookie, 0, length) + data


def begun(running: Served) -> socket.socket:
    """A client in transmission, with simple replies."""
    client = running.dialled()
    flags = p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE | p.NO_ZEROES)
    client.sendall(flags + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 4) + b"disk")
    assert came(client, p.GREETING.size + p.EXPORT_NAME_DATA.size)
    return client


def answered(client: socket.socket, length: int) -> bool:
    """Whether an answer with so much content comes, not the end."""
    return came(client, p.SIMPLE_REPLY.size + length)


def came(client: socket.socket, missing: int) -> bool:
    while missing:
        try:
            some = client.recv(missing)
        except ConnectionResetError:
            return False
        if not some:
            return False
        missing -= len(some)
    return True


@pytest.fixture
def exports() -> MemoryExports:
    return MemoryExports({"disk": MemoryDevice(b"x" * 4 * MIB, at_hand=False)}, frozenset({"disk"}))


def test_all_together_have_no_more_under_way_than_there_is_room(exports: MemoryExports, tmp_path: Path) -> None:
    """Three clients with four threads each could have 24 MiB of reads."""
    disk = exports.devices["disk"]
    disk.held.clear()
    with served(exports, tmp_path, room=Room(3 * LARGE)) as running:
        clients = [begun(running) for _ in range(3)]
        for client in clients:
            client.sendall(b"".join(request(p.CMD_READ, number, LARGE) for number in range(4)))
        eventually(lambda: disk.waiting == 3, "as many as there is room for")
        disk.held.set()
        with ThreadPoolExecutor() as pool:
            assert all(pool.map(lambda client: all(answered(client, LARGE) for _ in range(4)), clients))
        for client in clients:
            client.close()
    assert disk.most_waiting == 3


def test_who_takes_no_answers_delays_small_requests_of_nobody_and_large_ones_for_a_while(
    exports: MemoryExports, tmp_path: Path
) -> None:
    room = Room(2 * LARGE, patience_s=1, look_s=0.05)
    with served(exports, tmp_path, room=room) as running, begun(running) as stuck, begun(running) as other:
        stuck.sendall(b"".join(request(p.CMD_READ, number, LARGE) for number in range(4)))
        stuck.recv(1, socket.MSG_PEEK)  # an answer is on its way, and nobody takes it
        eventually(lambda: not room._free, "it has all of it")
        other.sendall(request(p.CMD_READ, 1, OWN // 2) * 2)
        assert all(answered(other, OWN // 2) for _ in range(2))
        assert running.reported == []
        other.sendall(request(p.CMD_READ, 1, LARGE) * 2)
        assert all(answered(other, LARGE) for _ in range(2))
        assert not all(answered(stuck, LARGE) for _ in range(4))
    ((name, error),) = running.reported
    assert (name, type(error)) == ("disk", TimeoutError)


def test_who_ends_in_the_middle_of_a_write_is_hung_up_on_where_another_waits(exports: MemoryExports, tmp_path: Path) -> None:
    room = Room(LARGE, patience_s=0.2, look_s=0.05)
    with served(exports, tmp_path, room=room) as running, begun(running) as stuck, begun(running) as other:
        stuck.sendall(request(p.CMD_WRITE, 1, LARGE, bytes(100)))
        eventually(lambda: not room._free, "it has all of it")
        other.sendall(request(p.CMD_WRITE, 1, LARGE, bytes(LARGE)))
        assert answered(other, 0)
        assert stuck.recv(1) == b""
        other.sendall(request(p.CMD_READ, 1, LARGE))  # what the write had taken was given back, and that of the other one
        assert answered(other, LARGE)
    assert [type(error) for _, error in running.reported] == [TimeoutError]


def test_a_write_that_is_refused_keeps_no_room(exports: MemoryExports, tmp_path: Path) -> None:
    exports.writable = frozenset()
    with served(exports, tmp_path, room=Room(LARGE)) as running, begun(running) as client:
        for _ in range(3):
            client.sendall(request(p.CMD_WRITE, 1, LARGE, bytes(LARGE)))
            assert answered(client, 0)
            client.sendall(request(p.CMD_READ, 1, LARGE))
            assert answered(client, LARGE)


def test_what_was_written_is_not_kept(exports: MemoryExports, tmp_path: Path) -> None:
    """Neither by the thread that took it, nor by the one that wrote it, while they wait for more."""
    with served(exports, tmp_path) as running, begun(running) as client:
        client.sendall(b"".join(request(p.CMD_WRITE, number, LARGE, bytes(LARGE)) for number in range(4)))
        assert all(answered(client, 0) for _ in range(4))
        eventually(
            lambda: not [one for one in gc.get_objects() if isinstance(one, Request) and len(one.data) == LARGE], "nothing is"
        )
