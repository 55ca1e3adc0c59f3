# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's console where there is no terminal: lines, made harmless, however they come."""

from __future__ import annotations

import io
import os
import socket

from everywhen.interfaces.cli.console import Lines, Terminal
from everywhen.interfaces.cli.output import Output
from everywhen.services.boot.emulator import BootedCopy


def test_lines_are_made_harmless() -> None:
    out = io.StringIO()
    lines = Lines(Output(out, io.StringIO(), {}))
    for piece in (b"one\r\ntw", b"o \x1b[2J\xff\n", b"web1 login: "):
        lines.show(piece)
    assert out.getvalue() == "one\ntwo \\x1b[2J\\xff\n"
    lines.finish()
    assert out.getvalue().endswith("\nweb1 login: \n")


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    out = io.StringIO()
    lines = Lines(Output(out, io.StringIO(), {}))
    lines.show(b"x" * 10_000)
    assert [len(line) for line in out.getvalue().splitlines()] == [4096, 4096]


def test_keys_go_to_the_guest_until_one_ends_it() -> None:
    ours, theirs = socket.socketpair()
    keys, terminal = os.pipe()
    with ours, theirs:
        console = Terminal(keys, terminal)
        os.write(terminal, b"ls\r")
        assert console.typed(ours)
        assert theirs.recv(100) == b"ls\r"
        os.write(terminal, b"x\x1dy")
        assert not console.typed(ours)
        assert theirs.recv(100) == b"x"
        os.close(terminal)
        assert not console.typed(ours)
        os.close(keys)
        assert not console.typed(ours)


def test_a_console_that_ends_with_keys_that_nobody_has_read() -> None:
    """As that of a guest that was powered off while somebody typed: what it said last is there, and then its end."""
    copy = BootedCopy.__new__(BootedCopy)
    copy.console, theirs = socket.socketpair()
    with copy.console:
        copy.console.send(b"\r\r\r")
        theirs.send(b"Power down\n")
        theirs.close()
        assert copy.said(100) == b"Power down\n"
        assert copy.said(100) == b""


def test_keys_for_a_copy_that_has_ended_are_dropped() -> None:
    ours, theirs = socket.socketpair()
    keys, terminal = os.pipe()
    with ours:
        theirs.close()
        os.write(terminal, b"ls\r")
        assert Terminal(keys, terminal).typed(ours)
    os.close(terminal)
    os.close(keys)
