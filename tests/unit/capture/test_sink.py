# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sink's answers to a client that speaks to it directly, and what it takes from it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from everywhen.capture.counters import ANSWERED, LET_GO, LETS_GO, OLDEST_NS, RECEIVED, Counters
from everywhen.capture.sink import Sink
from everywhen.capture.spool_writer import Record
from everywhen.formats.fields import parse_json, text
from everywhen.formats.segment import MARK, WRITE, ZERO
from everywhen.nbd import protocol as p
from tests.hypervisor import eventually

SIZE = 1 << 30


def request(command: int, cookie: int, offset: int = 0, data: bytes = b"", length: int = 0) -> bytes:
    return p.REQUEST.pack(p.REQUEST_MAGIC, 0, command, cookie, offset, length or len(data)) + data


def chosen(name: str) -> bytes:
    """What a client says until it may send requests."""
    flags = p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE | p.NO_ZEROES)
    return flags + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, len(name)) + name.encode()


@dataclass
class Running:
    """A sink in a thread; `room`: how many more records are taken."""

    counters: Counters
    control: socket.socket
    taken: list[Record] = field(default_factory=list)
    batches: int = 0
    room: int = 1000
    connections: int = 0

    def take(self, records: Sequence[Record]) -> int | None:
        if len(records) > self.room:
            self.room = 0  # a spool that is full stays full
            return None
        self.room -= len(records)
        self.batches += 1
        self.taken += records
        return len(self.taken) - len(records)

    def answers(self, *said: bytes) -> list[tuple[int, int]]:
        """(cookie, error) of each reply to a client that sends these pieces and hangs up."""
        mine, its = socket.socketpair()
        with mine:
            mine.settimeout(20)
            with its:
                socket.send_fds(self.control, [bytes([self.connections])], [its.fileno()])
            self.connections += 1
            for piece in said:
                mine.sendall(piece)
            mine.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: mine.recv(1 << 16), b""))
        begin = p.GREETING.size + p.EXPORT_NAME_DATA.size
        replies = [p.SIMPLE_REPLY.unpack_from(received, at) for at in range(begin, len(received), p.SIMPLE_REPLY.size)]
        return [(cookie, error) for _, error, cookie in replies]

    def said(self) -> list[Record | str]:
        """What was taken, marks as what they say; one who comes later is greeted when all of it is."""
        assert self.answers(chosen("probe")) == []
        return [text(parse_json("", one[4]), "mark") if one[0] == MARK else one for one in self.taken]


@pytest.fixture
def sink() -> Iterator[Running]:
    counters = Counters.create()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    running = Running(counters, ours)
    thread = threading.Thread(target=Sink([4096, SIZE], running.take, counters, its, lambda: False).run)
    thread.start()
    yield running
    ours.close()
    thread.join(20)
    its.close()
    counters.close()


WRITES = (
    request(p.CMD_WRITE, 5, 512, b"first"),
    request(p.CMD_WRITE_ZEROES, 6, 4096, length=1 << 29),
    request(p.CMD_WRITE, 7),
    request(p.CMD_FLUSH, 8),  # it offers none
    request(p.CMD_WRITE, 9, 1024, b"second"),
)


ANSWERED_SO = [(5, 0), (6, 0), (7, 0), (8, p.EINVAL), (9, 0)]


def test_all_in_one_piece_lies_in_order_between_the_marks_of_its_tap(sink: Running) -> None:
    assert sorted(sink.answers(chosen("disk-1") + b"".join(WRITES) + request(p.CMD_DISC, 10))) == ANSWERED_SO
    assert sink.said() == [
        "tap opened",
        (WRITE, 1, 512, 5, b"first"),
        (ZERO, 1, 4096, 1 << 29, b""),
        (WRITE, 1, 1024, 6, b"second"),
        "tap closed",
    ]
    assert sink.batches == 3
    assert (sink.counters.of(0, ANSWERED), sink.counters.of(0, OLDEST_NS)) == (4, 0)


def test_one_by_one_the_same_is_taken(sink: Running) -> None:
    """Also with each request's header and data apart, as QEMU sends them."""
    pieces = [piece for one in WRITES for piece in (one[: p.REQUEST.size], one[p.REQUEST.size :]) if piece]
    assert sorted(sink.answers(chosen("disk-1"), *pieces)) == ANSWERED_SO
    assert [one[1:3] for one in sink.said()[1:-1]] == [(1, 512), (1, 4096), (1, 1024)]
    assert sink.counters.of(0, RECEIVED) == len(chosen("disk-1")) + sum(map(len, WRITES))


def test_nothing_is_read_and_nothing_beyond_the_end_is_written(sink: Running) -> None:
    rude = request(p.CMD_READ, 1, length=512) + request(p.CMD_WRITE, 2, 4090, b"too long") + request(p.CMD_WRITE, 3, 0, b"fits")
    assert sorted(sink.answers(chosen("disk-0") + rude)) == [(1, p.EINVAL), (2, p.ENOSPC), (3, 0)]
    assert sink.said() == ["tap opened", (WRITE, 0, 0, 4, b"fits"), "tap closed"]


def test_a_mark_is_a_mark(sink: Running) -> None:
    assert sink.answers(chosen("mark-1") + request(p.CMD_WRITE, 1, 0, b'{"mark":"quiet"}')) == [(1, 0)]
    assert sink.said() == ["quiet"]


def test_what_finds_no_room_is_answered_and_forgotten(sink: Running) -> None:
    """Hung up on, QEMU would be in danger (K5). The spool has no room for a mark that the tap is closed, either."""
    sink.room = 3
    assert sink.answers(chosen("disk-1") + WRITES[0] + WRITES[1] + WRITES[4]) == [(5, 0), (6, 0), (9, 0)]
    assert sink.said() == ["tap opened"]
    assert sink.counters.get(LETS_GO) == 1


def test_told_to_let_go_it_answers_and_takes_nothing(sink: Running) -> None:
    """A guest goes on; who makes a mark is told that there will be none."""
    assert sink.answers(chosen("disk-1") + WRITES[0]) == [(5, 0)]
    sink.counters.put(LET_GO, 1)
    eventually(lambda: sink.counters.get(LETS_GO) == 1, "it lets go")
    assert sink.answers(chosen("disk-1") + WRITES[0] + WRITES[1]) == [(5, 0), (6, 0)]
    assert sink.answers(chosen("mark-1") + request(p.CMD_WRITE, 1, 0, b'{"mark":"quiet"}')) == [(1, p.EIO)]
    assert sink.said() == ["tap opened", (WRITE, 1, 512, 5, b"first"), "tap closed"]


def test_a_client_that_makes_no_sense_costs_nobody_else_anything(sink: Running) -> None:
    assert sink.answers(chosen("disk-1") + WRITES[0] + b"\0" * 28) == []
    assert sink.answers(chosen("disk-0") + WRITES[0]) == [(5, 0)]
