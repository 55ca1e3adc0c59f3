# SPDX-License-Identifier: AGPL-3.0-or-later
"""A server's threads: who waits for whom, what a failure costs, and that all ends."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everywhen.nbd import protocol as p
from everywhen.nbd.connection import NbdError
from tests.hypervisor import eventually
from tests.memory_devices import BLOCK, MIB, Damaged, MemoryDevice, MemoryExports, Served, served

CONTENT = bytes(range(1, 256)) * 4112 + bytes(16)  # almost 1 MiB
SIZE = len(CONTENT)


@pytest.fixture
def disk() -> MemoryDevice:
    return MemoryDevice(CONTENT)


@pytest.fixture
def exports(disk: MemoryDevice) -> MemoryExports:
    return MemoryExports({"disk": disk, "other": MemoryDevice(bytes(MIB))}, frozenset({"other"}))


@pytest.fixture
def running(exports: MemoryExports, tmp_path: Path) -> Iterator[Served]:
    with served(exports, tmp_path) as server:
        yield server


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("nbd-")}


def chosen(name: bytes) -> bytes:
    """What a client without structured replies says until it may send requests."""
    flags = p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE | p.NO_ZEROES)
    return flags + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, len(name)) + name


def request(command: int, cookie: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
    return p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, cookie, offset, length or len(data)) + data


def info(name: bytes) -> bytes:
    """What a client says that wants to know about an export."""
    data = struct.pack(">I", len(name)) + name + bytes(2)
    return p.OPTION.pack(p.OPTION_MAGIC, p.OPT_INFO, len(data)) + data


def received(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        some = client.recv(count - len(found))
        assert some, "the server hung up"
        found += some
    return found


GREETED = p.GREETING.size + p.EXPORT_NAME_DATA.size


def begun(running: Served, name: bytes = b"disk") -> socket.socket:
    client = running.dialled()
    client.sendall(chosen(name))
    received(client, GREETED)
    return client


@pytest.mark.parametrize("at_hand", [True, False])
def test_reads_are_answered(running: Served, disk: MemoryDevice, *, at_hand: bool) -> None:
    disk.at_hand = at_hand
    with running.connected() as client:
        assert (client.offer.size, client.offer.flags) == (
            SIZE,
            p.HAS_FLAGS | p.READ_ONLY | p.CAN_MULTI_CONN | p.SEND_DF,
        )
        cookies = {client.ask(offset, 5000): offset for offset in range(0, SIZE - 5000, 60000)}
        for cookie, offset in cookies.items():
            assert client.answer(cookie).data == CONTENT[offset : offset + 5000]
    assert (disk.most_waiting == 0) == at_hand


def test_writes_zeroes_and_flushes_reach_the_device(running: Served, exports: MemoryExports) -> None:
    other = exports.devices["other"]
    with begun(running, b"other") as client:
        client.sendall(request(p.CMD_WRITE, 1, 100, data=b"abcdefgh"))
        assert received(client, 16) == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, 1)
        assert other.flushed == 0
        client.sendall(request(p.CMD_WRITE_ZEROES, 2, 102, 2, flags=p.FLAG_FUA))
        received(client, 16)
        assert other.flushed == 1
        client.sendall(request(p.CMD_TRIM, 3, 105, 2))
        received(client, 16)
        client.sendall(request(p.CMD_FLUSH, 4))
        received(client, 16)
        assert other.flushed == 2
        client.sendall(request(p.CMD_READ, 5, 100, 8))
        assert received(client, 24)[16:] == b"ab\0\0e\0\0h"


def test_status_is_asked_for_as_far_as_it_is_wanted(running: Served, exports: MemoryExports) -> None:
    exports.devices["other"].content[BLOCK * 3 : BLOCK * 5] = b"x" * BLOCK * 2
    with running.connected("other", p.ALLOCATION) as client:
        assert client.extents(p.ALLOCATION, 0, MIB) == [(3 * BLOCK, 3), (2 * BLOCK, 0), (11 * BLOCK, 3)]


def test_a_failed_read_is_an_error_for_that_read_and_reported_once(running: Served, disk: MemoryDevice) -> None:
    disk.damaged = range(1, 3)
    with running.connected() as client:
        cookies = [client.ask(block * BLOCK, 512) for block in range(4)]
        for cookie, fails in zip(cookies, (False, True, True, False), strict=True):
            if fails:
                with pytest.raises(NbdError, match="error 5"):
                    client.answer(cookie)
            else:
                assert len(client.answer(cookie).data) == 512
    assert [(name, type(error)) for name, error in running.reported] == [("disk", Damaged)]


def test_a_name_is_opened_once_for_a_connection_and_let_go_of_at_its_end(running: Served, exports: MemoryExports) -> None:
    with running.connected("disk", p.ALLOCATION), running.connected("disk", p.ALLOCATION):
        assert exports.opened == exports.users == ["disk", "disk"]
    eventually(lambda: not exports.users, "both are let go of")
    with running.dialled() as client:
        client.sendall(p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE) + info(b"disk") + info(b"other"))
        eventually(lambda: exports.users == ["other"], "it asks about another one")
    eventually(lambda: not exports.users, "it has left without having chosen")
    assert exports.opened == ["disk", "disk", "disk", "other"]
    with pytest.raises(NbdError, match="the newest is disk@12:00"):
        running.connected("gone")


def test_a_client_that_takes_no_answers_holds_up_nobody_else(running: Served, disk: MemoryDevice) -> None:
    """Of reads that are at hand, and of reads that are not: the second kind fills four workers and the queue before them."""
    with begun(running) as greedy, begun(running) as greedier:
        greedy.sendall(b"".join(request(p.CMD_READ, cookie, 0, BLOCK) for cookie in range(200)))
        greedier.sendall(b"".join(request(p.CMD_READ, cookie, 0, MIB // 2) for cookie in range(200)))
        eventually(lambda: disk.most_waiting > 0, "a worker reads")
        for disk.at_hand in (True, False):
            with running.connected() as modest:
                for _ in range(20):
                    assert modest.answer(modest.ask(3, 100)).data == CONTENT[3:103]
        assert disk.most_waiting <= 4 + 4 + 1
        running.server.stop()


def test_what_one_client_has_under_way_is_bounded(running: Served, disk: MemoryDevice) -> None:
    """64 MiB: 128 reads of 512 KiB. The requests behind them are not even taken."""
    disk.at_hand = False
    disk.held.clear()
    with begun(running) as client:
        client.settimeout(0.5)
        reads = b"".join(request(p.CMD_READ, cookie, 0, MIB // 2) for cookie in range(100_000))
        with pytest.raises(TimeoutError):
            client.sendall(reads)
        eventually(lambda: disk.waiting == 4, "all workers of this client read")
        disk.held.set()
        client.settimeout(20)
        assert received(client, 4 * (MIB // 2 + 16))


def test_all_is_answered_that_was_asked_before_the_client_said_that_this_was_all(running: Served, disk: MemoryDevice) -> None:
    disk.at_hand = False
    for goodbye in (request(p.CMD_DISC, 9), b""):
        with begun(running) as client:
            client.sendall(b"".join(request(p.CMD_READ, cookie, 0, 100) for cookie in range(8)) + goodbye)
            client.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: client.recv(1 << 16), b""))
        cookies = [struct.unpack_from(">IIQ", said, at)[2] for at in range(0, len(said), 116)]
        assert sorted(cookies) == list(range(8))


@pytest.mark.parametrize("said", [bytes(28), request(99, 1)[:10], request(p.CMD_READ, 1)[:-1]], ids=["noise", "cut", "shorter"])
def test_who_makes_no_sense_is_hung_up_on_and_the_others_go_on(running: Served, said: bytes) -> None:
    with running.connected() as client:
        with begun(running) as rude:
            rude.sendall(said)
            rude.shutdown(socket.SHUT_WR)
            assert rude.recv(100) == b""
        assert client.answer(client.ask(0, 10)).data == CONTENT[:10]
    if said == bytes(28):
        assert [(name, type(error)) for name, error in running.reported] == [("disk", p.ProtocolError)]


def test_who_makes_no_sense_while_answers_wait_for_it_is_hung_up_on(
    running: Served, exports: MemoryExports, disk: MemoryDevice
) -> None:
    with begun(running) as rude:
        rude.sendall(b"".join(request(p.CMD_READ, cookie, 0, MIB // 2) for cookie in range(8)))
        eventually(lambda: disk.most_waiting > 0, "a worker reads")
        rude.sendall(bytes(28))
        eventually(lambda: not exports.users, "it is let go of")


def test_a_fault_of_the_device_ends_the_connection(
    running: Served, disk: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not named as a failure is a fault of ours: it is raised, and the client does not wait for ever."""
    raised: list[type[BaseException] | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: raised.append(told.exc_type))

    def status(offset: int, length: int) -> list[tuple[int, bool]]:
        raise ZeroDivisionError

    monkeypatch.setattr(disk, "status", status)
    with running.connected("disk", p.ALLOCATION) as client, pytest.raises(NbdError, match="hung up"):
        client.extents(p.ALLOCATION, 0, 100)
    eventually(lambda: raised == [ZeroDivisionError], "it is raised")


def test_stopping_ends_clients_in_every_state(exports: MemoryExports, disk: MemoryDevice, tmp_path: Path) -> None:
    with served(exports, tmp_path) as running:
        clients = [running.dialled(), begun(running), begun(running), begun(running)]
        clients[2].sendall(request(p.CMD_READ, 1, 0, BLOCK) * 100)  # it takes no answers
        disk.at_hand = False
        disk.held.clear()
        clients[3].sendall(request(p.CMD_READ, 1, 0, 100) * 8)
        eventually(lambda: disk.waiting >= 4, "reads are under way")
        stopping = threading.Thread(target=running.server.stop)
        stopping.start()
        eventually(lambda: "nbd-listener" not in threads(), "nobody is taken any more")
        assert stopping.is_alive(), "reads under way are waited for"
        disk.held.set()
        stopping.join(20)
        assert not threads()
        for client in clients:
            client.close()
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(str(running.path))


def test_a_silent_client_is_not_waited_for_for_ever(
    exports: MemoryExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everywhen.nbd.served_client._HANDSHAKE_S", 0.5)
    with served(exports, tmp_path) as running:
        with running.dialled() as client:
            assert len(received(client, p.GREETING.size)) == p.GREETING.size
            assert client.recv(1) == b""
        with begun(running) as client:
            time.sleep(0.8)  # longer than a handshake may last: who has chosen may be silent
            client.sendall(request(p.CMD_READ, 1, 0, 10))
            assert received(client, 26)[16:] == CONTENT[:10]
    assert [type(error) for _, error in running.reported] == [TimeoutError]


def test_over_tcp(exports: MemoryExports, tmp_path: Path) -> None:
    with served(exports, tmp_path) as running:
        listening = socket.create_server(("127.0.0.1", 0))
        address = listening.getsockname()
        running.server.listen(listening)
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(chosen(b"disk") + request(p.CMD_READ, 1, 0, 10))
            assert received(client, GREETED + 26)[-10:] == CONTENT[:10]


def test_who_comes_when_all_places_are_taken_waits_for_one(
    exports: MemoryExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everywhen.nbd.serving._MOST", 2)
    with served(exports, tmp_path) as running:
        first, second, third = begun(running), begun(running), running.dialled()
        third.settimeout(0.2)
        with pytest.raises(TimeoutError):
            third.recv(1)
        first.close()
        third.settimeout(20)
        assert received(third, p.GREETING.size).startswith(b"NBDMAGIC")
        for client in (second, third):
            client.close()


class Tired(socket.socket):
    """A socket that fails once as it does where there are no more descriptors."""

    refused = False

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.refused:
            self.refused = True
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


def test_a_failure_to_take_a_client_passes(exports: MemoryExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes no place: there are just the two for which the sockets wait."""
    monkeypatch.setattr("everywhen.nbd.serving._MOST", 2)
    with served(exports, tmp_path) as running:
        listening = Tired(socket.AF_UNIX)
        listening.bind(str(tmp_path / "tired"))
        listening.listen()
        running.server.listen(listening)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(tmp_path / "tired"))
            assert received(client, p.GREETING.size).startswith(b"NBDMAGIC")
    assert [(name, str(error)) for name, error in running.reported] == [("", "[Errno 24] too many open files")]


def test_a_thread_that_cannot_be_had_costs_one_client(running: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "nbd-client":
            monkeypatch.setattr(threading.Thread, "start", start)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with running.dialled() as client:
        assert client.recv(1) == b""
    begun(running).close()
    assert [str(error) for _, error in running.reported] == ["can't start new thread"]
