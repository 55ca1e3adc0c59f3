# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes over sockets, in the clear and encrypted, both ways at once."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from everywhen.nbd.transport import Clear, Tls, Transport
from tests.certificates import Authority

MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("server")
    return made


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, its = socket.socketpair()
    with ours, its:
        ours.settimeout(20)  # and so the system may take a part of what is sent
        its.settimeout(20)
        yield ours, its


def received(client: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        some = client.recv(1 << 16)
        assert some
        found += some
    return bytes(found)


@contextmanager
def encrypted(authority: Authority) -> Iterator[tuple[Tls, ssl.SSLSocket]]:
    context = ssl.create_default_context(cafile=str(authority.folder / "ca-cert.pem"))
    with sockets() as (ours, its):
        server = Tls(ours, authority.server_context(client_certificates=False))
        agreed: list[bool] = []
        thread = threading.Thread(target=lambda: agreed.append(server.handshake()))
        thread.start()
        with context.wrap_socket(its, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            thread.join(20)
            assert agreed == [True]
            yield server, client


def sent_from_here(transport: Transport, client: socket.socket) -> None:
    pieces = [bytes([number % 256]) * (number * 977 % 70_000) for number in range(200)]
    thread = threading.Thread(target=transport.send, args=(pieces,))
    thread.start()
    assert received(client, sum(map(len, pieces))) == b"".join(pieces)
    thread.join(20)


def test_all_pieces_arrive_however_much_the_system_takes_at_once() -> None:
    with sockets() as (ours, its):
        sent_from_here(Clear(ours), its)


def test_all_pieces_arrive_encrypted(authority: Authority) -> None:
    with encrypted(authority) as (server, client):
        sent_from_here(server, client)


def test_both_ways_at_once(authority: Authority) -> None:
    """One thread waits for the client and takes what it says, while two others send."""
    content = random.Random(1).randbytes(2 * MIB)
    with encrypted(authority) as (server, client):
        taken = bytearray()
        sending = threading.Lock()

        def take() -> None:
            buffer = memoryview(bytearray(100_000))
            while len(taken) < len(content):
                count = server.receive_into(buffer)
                taken.extend(buffer[:count])

        def send(value: int) -> None:
            for _ in range(100):
                with sending:
                    server.send([bytes([value]) * 10_000])

        threads = [threading.Thread(target=take), *(threading.Thread(target=send, args=(value,)) for value in (1, 2))]
        for thread in threads:
            thread.start()
        found = bytearray()
        for begin in range(0, len(content), 64 << 10):  # OpenSSL's object of the client is one thread's as well
            client.sendall(content[begin : begin + (64 << 10)])
            found += client.recv(1 << 16)
        found += received(client, 2_000_000 - len(found))
        for thread in threads:
            thread.join(20)
        assert taken == content
        assert sorted((found.count(1), found.count(2))) == [1_000_000, 1_000_000]


def test_the_end_is_said(authority: Authority) -> None:
    """So that nobody who cuts the connection can pass for the server having ended it."""
    with encrypted(authority) as (server, client):
        server.goodbye()
        assert client.recv(1) == b""
        client.unwrap()
        assert server.receive_into(memoryview(bytearray(1))) == 0


class Noted:
    """A socket of which is known when something is waited for, and when it has come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.waits, self.came = threading.Event(), threading.Event()

    def recv_into(self, buffer: memoryview) -> int:
        self.waits.set()
        count = self._connection.recv_into(buffer)
        self.came.set()
        return count


def test_what_comes_is_given_to_openssl_by_one_thread_at_a_time(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with encrypted(authority) as (server, client):
        noted = Noted(server._socket)
        monkeypatch.setattr(server, "_socket", noted)
        buffer = memoryview(bytearray(10))
        thread = threading.Thread(target=server.receive_into, args=(buffer,))
        thread.start()
        assert noted.waits.wait(20)
        with server._using:  # as one has it who sends
            client.sendall(b"x" * 10)
            assert noted.came.wait(20)
            thread.join(0.2)
            assert not server._received.pending
        thread.join(20)
        assert bytes(buffer) == b"x" * 10
