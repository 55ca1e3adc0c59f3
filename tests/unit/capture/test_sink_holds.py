# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sink holds answers back where the spool falls behind: not for long, and no longer than that lasts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from everywhen.capture import sink, spool_writer
from everywhen.capture.counters import ANSWERED, DURABLE, FINE, LET_GO, OLDEST_NS, STATE, Counters
from everywhen.capture.sink import Sink, Take
from everywhen.capture.sink_process import SinkOrder
from everywhen.capture.spool_writer import SpoolWriter
from everywhen.capture.watching import EVERY_S, LIMIT_NS
from everywhen.formats.keyslot import Keyset
from everywhen.nbd import protocol as p
from everywhen.repository.keys.segment_keys import JournalRecipient
from tests.hypervisor import eventually

MS = 1_000_000
_REPLY = p.SIMPLE_REPLY.size


class Clock:
    """Nanoseconds that pass when the test says so."""

    now = 5_000 * MS

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def counters() -> Iterator[Counters]:
    made = Counters.create()
    yield made
    made.close()


def received(client: socket.socket, count: int) -> bool:
    """Whether so many bytes come, before it is hung up."""
    while count and (part := client.recv(count)):
        count -= len(part)
    return not count


@contextmanager
def tapped(take: Take, counters: Counters, behind: Callable[[], bool]) -> Iterator[socket.socket]:
    """A client of a sink in a thread, as connection 0; the handshake is done."""
    watchdog, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    running = threading.Thread(target=Sink([1 << 30], take, counters, control, behind).run)
    running.start()
    mine, its = socket.socketpair()
    try:
        with its:
            socket.send_fds(watchdog, [b"\0"], [its.fileno()])
        mine.settimeout(20)
        flags = p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE | p.NO_ZEROES)
        mine.sendall(flags + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 6) + b"disk-0")
        assert received(mine, p.GREETING.size + p.EXPORT_NAME_DATA.size)
        yield mine
    finally:
        mine.close()
        watchdog.close()
        running.join()
        control.close()


def write(cookie: int, length: int = 512) -> bytes:
    return p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, cookie, 0, length) + bytes(length)


def test_answers_wait_until_the_spool_has_caught_up(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for longer than the watchdog bears, counted from the first write that waits."""
    clock, behind = Clock(), threading.Event()
    monkeypatch.setattr(sink, "monotonic_ns", clock)
    taken = list[object]()
    with tapped(lambda records: taken.extend(records) or len(taken), counters, behind.is_set) as client:  # type: ignore[func-returns-value]

        def held(count: int) -> None:
            eventually(lambda: len(taken) >= count, "taken")
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(20)

        client.sendall(write(1))
        assert received(client, _REPLY)
        behind.set()
        client.sendall(write(2))
        held(3)  # the first is that the tap was opened
        behind.clear()
        assert received(client, _REPLY)
        behind.set()
        client.sendall(write(3))
        held(4)
        first_ns, clock.now = clock.now, clock.now + 120 * MS
        client.sendall(write(4))
        held(5)
        assert (counters.of(0, OLDEST_NS), counters.of(0, ANSWERED)) == (first_ns, 2)
        clock.now += 20 * MS
        assert received(client, 2 * _REPLY)
        eventually(lambda: counters.of(0, ANSWERED) == 4, "counted")
        assert counters.of(0, OLDEST_NS) == 0
        assert counters.worst_ns() == 140 * MS
    assert 140 * MS + EVERY_S * 1e9 < LIMIT_NS


def test_a_guest_that_is_faster_than_the_spool_is_slowed(
    tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-6: four writes at once would take 16 times the memory that there is, if nobody waited."""
    monkeypatch.setattr(sink, "_HELD_NS", 20_000 * MS)  # the machine is busy, and the spool's writer may not have its turn
    monkeypatch.setattr(spool_writer, "_WAITING_BYTES", 1 << 20)
    monkeypatch.setattr(spool_writer, "_GROUP_BYTES", 64 << 10)
    put = SpoolWriter._write_group
    monkeypatch.setattr(SpoolWriter, "_write_group", lambda self, group: threading.Event().wait(0.002) or put(self, group))
    recipient = JournalRecipient.of(b"r" * 16, Keyset(b"n" * 32, {}))
    identity = (recipient.repository.hex(), recipient.generation, recipient.public.hex())
    writer = SpoolWriter(SinkOrder([1 << 30], str(tmp_path), 1 << 30, "ab" * 16, 1, *identity).place(), counters)
    try:
        with tapped(writer.take, counters, lambda: writer.behind) as client:
            client.sendall(b"".join(write(cookie, 64 << 10) for cookie in range(4)))
            for cookie in range(4, 256):
                assert received(client, _REPLY), "the sink let go of its tap"
                client.sendall(write(cookie, 64 << 10))
            assert received(client, 4 * _REPLY)
    finally:
        writer.close()
    assert (counters.get(STATE), counters.get(DURABLE)) == (FINE, 258)


@pytest.mark.parametrize("ends", [True, False])
def test_nobody_waits_for_a_sink_that_lets_go_or_ends(
    counters: Counters, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    """Its memory does not empty any more; and a write that is under way when it hangs up endangers QEMU (K5)."""
    monkeypatch.setattr(sink, "monotonic_ns", Clock())
    taken = list[object]()
    with tapped(lambda records: taken.extend(records) or len(taken), counters, lambda: True) as client:  # type: ignore[func-returns-value]
        client.sendall(write(1))
        eventually(lambda: len(taken) == 2, "taken")
        if ends:
            client.shutdown(socket.SHUT_WR)
        else:
            counters.put(LET_GO, 1)
        assert received(client, _REPLY)
        if not ends:
            client.sendall(write(2))
            assert received(client, _REPLY)
